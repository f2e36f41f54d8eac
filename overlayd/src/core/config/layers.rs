//! The layers of text, laid over one another.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::keys::{CONFIG_VARIABLE, ENVIRONMENT_PREFIX, Key, find, suggest};
use super::values::Read;
use super::{ConfigFault, RawConfig};

const ENVIRONMENT: &str = "environment";
const COMMAND_LINE: &str = "command line";

/// The winning value of each key with the source it came from, and the faults found so far.
pub(super) struct Layers<'a> {
    settings: BTreeMap<&'static str, Setting<'a>>,
    faults: Vec<ConfigFault>,
}

struct Setting<'a> {
    text: String,
    written_as: String,
    source: Source<'a>,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    File(&'a str),
    Environment,
    CommandLine,
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => write!(f, "file {name}"),
            Self::Environment => f.write_str(ENVIRONMENT),
            Self::CommandLine => f.write_str(COMMAND_LINE),
        }
    }
}

impl<'a> Layers<'a> {
    /// Lays all layers over one another. Unknown names are faults.
    pub(super) fn read(
        file: Option<(&'a str, &str)>,
        environment: &BTreeMap<String, String>,
        flags: &RawConfig,
    ) -> Self {
        let mut layers = Self { settings: BTreeMap::new(), faults: Vec::new() };
        if let Some((name, text)) = file {
            layers.read_file(name, text);
        }
        layers.read_environment(environment);
        for (name, text) in &flags.values {
            let written_as = |key: &Key| format!("--{}", key.flag());
            match find(name) {
                Some(key) => layers.set(key, text, written_as(key), Source::CommandLine),
                None => {
                    let problem = unknown("flag", suggest(name).map(written_as));
                    let shown = format!("--{}", name.replace('_', "-"));
                    layers.push(shown, Source::CommandLine, problem);
                }
            }
        }
        layers
    }

    /// Whether some layer sets this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.settings.contains_key(key)
    }

    /// The value that wins, if there is one and it can be read; a fault is noted else.
    pub(super) fn value<T>(&mut self, key: &str, read: impl FnOnce(&str) -> Read<T>) -> Option<T> {
        let setting = self.settings.get(key)?;
        match read(&setting.text) {
            Ok(value) => Some(value),
            Err(problem) => {
                let hint = if is_service_link(&setting.text) { SERVICE_LINK_HINT } else { "" };
                self.fault(key, format!("{problem}{hint}"));
                None
            }
        }
    }

    /// Notes a fault of this key, told with the source that set it.
    pub(super) fn fault(&mut self, key: &str, problem: String) {
        let (key, source_name) = match self.settings.get(key) {
            Some(setting) => (setting.written_as.clone(), setting.source.to_string()),
            None => (key.to_owned(), "default".to_owned()),
        };
        self.faults.push(ConfigFault { key, source_name, problem });
    }

    pub(super) fn into_faults(self) -> Vec<ConfigFault> {
        self.faults
    }

    fn read_file(&mut self, name: &'a str, text: &str) {
        let source = Source::File(name);
        let entries = match parse_file(text) {
            Ok(entries) => entries,
            Err((place, problem)) => return self.push(place, source, problem),
        };
        for (key_name, text) in entries {
            match (find(&key_name), text) {
                (Some(key), Ok(text)) => self.set(key, &text, key_name, source),
                (Some(_), Err(problem)) => self.push(key_name, source, problem),
                (None, _) => {
                    let problem = unknown("key", suggest(&key_name).map(|key| key.name.to_owned()));
                    self.push(key_name, source, problem);
                }
            }
        }
    }

    fn read_environment(&mut self, environment: &BTreeMap<String, String>) {
        for (variable, text) in environment {
            let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            if variable == CONFIG_VARIABLE || text.is_empty() {
                continue;
            }
            let lower = name.to_ascii_lowercase();
            match find(&lower).filter(|key| key.variable() == *variable) {
                Some(key) => self.set(key, text, variable.clone(), Source::Environment),
                None => {
                    let mut problem = unknown("variable", suggest(&lower).map(Key::variable));
                    if name.starts_with("SERVICE_") || name.starts_with("PORT_") {
                        problem.push_str(SERVICE_LINK_HINT);
                    }
                    self.push(variable.clone(), Source::Environment, problem);
                }
            }
        }
    }

    fn set(&mut self, key: &'static Key, text: &str, written_as: String, source: Source<'a>) {
        self.settings.insert(key.name, Setting { text: text.trim().to_owned(), written_as, source });
    }

    fn push(&mut self, key: String, source: Source<'a>, problem: String) {
        self.faults.push(ConfigFault { key, source_name: source.to_string(), problem });
    }
}

/// Kubernetes sets `OVERLAYD_PORT=tcp://...` and more in every pod beside a Service of the name overlayd.
const SERVICE_LINK_HINT: &str =
    "; it looks like a link to a Service named overlayd: set enableServiceLinks: false in the pod's spec";

fn is_service_link(text: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme))
}

fn unknown(what: &str, suggestion: Option<String>) -> String {
    match suggestion {
        Some(suggestion) => format!("there is no such {what}; did you mean {suggestion}?"),
        None => format!("there is no such {what}"),
    }
}

/// A key of the file with its text, or with what is wrong with the shape of its value.
type Entry = (String, Read<String>);

/// Entries in the order of the file, each with its text or what is wrong with the shape of its value;
/// or the place and the cause, if the whole is not a YAML mapping.
fn parse_file(text: &str) -> Result<Vec<Entry>, (String, String)> {
    // A number is text to us: what stands there is kept as far as the parser lets us, and words such as
    // `off` are not truth values.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    let file: Option<File> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place =
            error.location().map_or_else(|| "contents".to_owned(), |at| format!("line {}", at.line()));
        (place, error.to_string())
    })?;
    Ok(file.map(|file| file.0).unwrap_or_default())
}

struct File(Vec<(String, Read<String>)>);

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = File;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of keys to values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<File, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    entries.push((key, value.0));
                }
                Ok(File(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A scalar, or a list of scalars joined with commas.
struct Value(Read<String>);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a list of values")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value(Ok(value.to_string())))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value(Ok(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value(Ok(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value(Ok(format!("{value:?}"))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value(Ok(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value(Err("has no value".into())))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value(Err("has no value".into())))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = list.next_element::<Value>()? {
            parts.push(part.0);
        }
        let joined: Read<Vec<String>> = parts.into_iter().collect();
        Ok(Value(joined.map(|parts| parts.join(","))))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
        Ok(Value(Err("is a mapping, neither a value nor a list".into())))
    }
}
