//! Where the API server is and who we are, read anew for each connection: files are rotated under us.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};

use crate::core::config::Config;

/// Where kubelet mounts the service account of a pod (`DefaultAPITokenMountPath` of Kubernetes).
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long connecting may take, TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What the configuration says about the API server.
#[derive(Clone, Debug)]
pub struct Access {
    kubeconfig: Option<PathBuf>,
    api_server: Option<String>,
    service_account: PathBuf,
}

/// A client and the address of its server, for words.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) server: String,
}

impl Access {
    /// Takes it from the configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            kubeconfig: config.kubeconfig.clone(),
            api_server: config.api_server.clone(),
            service_account: SERVICE_ACCOUNT.into(),
        }
    }

    /// Whom we are, in words.
    #[must_use]
    pub fn identity(&self) -> String {
        match &self.kubeconfig {
            Some(path) => format!("kubeconfig {}", path.display()),
            None => "the pod's service account".to_owned(),
        }
    }

    /// A client with what the files say now. Nothing is sent yet.
    ///
    /// # Errors
    /// In words: which file or variable is missing or wrong.
    pub(super) async fn connect(&self) -> Result<Connection, String> {
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path)
                .map_err(|error| format!("kubeconfig {}: {}", path.display(), chain(&error)))?,
            None => self.of_the_pod(|name| std::env::var(name).ok())?,
        };
        let bad = |error: &dyn std::error::Error| format!("{}: {}", self.identity(), chain(error));
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|error| bad(&error))?;
        if let Some(url) = &self.api_server {
            config.cluster_url = url.parse().map_err(|error| format!("api_server {url}: {error}"))?;
        }
        config.connect_timeout = Some(CONNECT_LIMIT);
        // Our own loop waits, with a longer breath, and tells.
        config.default_retry = false;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| bad(&error))?;
        Ok(Connection { client, server })
    }

    /// The service account in the form of a kubeconfig.
    fn of_the_pod(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Kubeconfig, String> {
        let file = |name: &str| self.service_account.join(name);
        if !file("token").exists() {
            return Err(format!(
                "there is no source of Nodes: neither nodes_file nor kubeconfig is set, and there is no service account \
                 in {}",
                self.service_account.display()
            ));
        }
        let server = match &self.api_server {
            Some(url) => url.clone(),
            None => server_of_the_environment(variable)?,
        };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let cluster = Cluster {
            server: Some(server),
            certificate_authority: Some(text(&file("ca.crt"))),
            ..Cluster::default()
        };
        let user = AuthInfo { token_file: Some(text(&file("token"))), ..AuthInfo::default() };
        let name = || "pod".to_owned();
        let context = Context { cluster: name(), user: Some(name()), ..Context::default() };
        Ok(Kubeconfig {
            clusters: vec![NamedCluster { name: name(), cluster: Some(cluster), ..NamedCluster::default() }],
            auth_infos: vec![NamedAuthInfo {
                name: name(),
                auth_info: Some(user),
                ..NamedAuthInfo::default()
            }],
            contexts: vec![NamedContext { name: name(), context: Some(context), ..NamedContext::default() }],
            current_context: Some(name()),
            ..Kubeconfig::default()
        })
    }
}

/// The variables that kubelet sets in every pod.
fn server_of_the_environment(variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let get = |name: &str| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| format!("{name} is not set in the environment, and neither is api_server"))
    };
    let (host, port) = (get("KUBERNETES_SERVICE_HOST")?, get("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Ok(format!("https://{host}:{port}"))
}

/// An error with all its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn access(directory: &Path) -> Access {
        Access { kubeconfig: None, api_server: None, service_account: directory.to_owned() }
    }

    fn in_pod(name: &str) -> Option<String> {
        match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        }
    }

    #[tokio::test]
    async fn without_any_source_the_words_name_all_three() {
        let directory = tempfile::tempdir().unwrap();
        let problem = access(directory.path()).connect().await.err().unwrap();
        for part in ["nodes_file", "kubeconfig", "service account"] {
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn the_service_account_is_read_from_its_mount() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("token"), "secret").unwrap();
        let kubeconfig = access(directory.path()).of_the_pod(in_pod).unwrap();
        let cluster = kubeconfig.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://[fd00::1]:443"));
        assert!(cluster.certificate_authority.as_ref().unwrap().ends_with("/ca.crt"));
        let problem = access(directory.path()).of_the_pod(|_| None).unwrap_err();
        assert!(problem.contains("KUBERNETES_SERVICE_HOST") && problem.contains("api_server"), "{problem}");
        let elsewhere = Access { api_server: Some("https://192.0.2.1".into()), ..access(directory.path()) };
        assert!(elsewhere.of_the_pod(|_| None).is_ok());
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        let access = Access { kubeconfig: Some(path.clone()), ..access(directory.path()) };
        let problem = access.connect().await.err().unwrap();
        assert!(problem.contains(path.to_str().unwrap()), "{problem}");
        fs::write(&path, "current-context: x\n").unwrap();
        let problem = access.connect().await.err().unwrap();
        assert!(problem.contains(path.to_str().unwrap()), "{problem}");
    }

    #[tokio::test]
    async fn the_url_of_the_configuration_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(
            &path,
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
             clusters: [{name: k, cluster: {server: 'https://192.0.2.1:6443', insecure-skip-tls-verify: true}}]\n\
             users: [{name: u, user: {token: t}}]\n",
        )
        .unwrap();
        let access = Access { kubeconfig: Some(path), ..access(directory.path()) };
        assert_eq!(access.connect().await.unwrap().server, "https://192.0.2.1:6443");
        let access = Access { api_server: Some("https://192.0.2.9:8443".into()), ..access };
        assert_eq!(access.connect().await.unwrap().server, "https://192.0.2.9:8443");
    }
}
