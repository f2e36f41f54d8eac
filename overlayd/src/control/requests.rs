//! Answers the CNI plugin.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use wire::ipc::{Attachment, Lease, LeaseAddress, RefusalKind, Reply, Request};
use wire::tag::{GATEWAY_V4, GATEWAY_V6, veth_name};

use super::Control;
use crate::core::cluster::Peer;
use crate::core::desired::{inner_mtu, peer_mtu};
use crate::core::leases::{LeaseError, Leases};
use crate::edge::cni::Call;

impl Control {
    pub(super) fn answer(&mut self, call: Call) {
        let reply = self.reply(&call.request);
        // Runtimes ask for the status every few seconds; what is wrong is logged where it happens.
        let is_poll = matches!(call.request, Request::Status { .. });
        if let (Reply::Refused { kind, message }, false) = (&reply, is_poll) {
            tracing::info!(request = ?call.request, ?kind, %message, "request of the CNI plugin refused");
        } else {
            tracing::debug!(request = ?call.request, ?reply, "request of the CNI plugin answered");
        }
        // A client that went away gets nothing; what was allocated for it expires.
        let _ = call.reply.send(reply);
    }

    fn reply(&mut self, request: &Request) -> Reply {
        match request {
            Request::Allocate(attachment) => self.lease(|leases, now| leases.allocate(attachment, now)),
            Request::Taken { attachment, addresses } => {
                self.lease(|leases, now| leases.taken(attachment, addresses, now))
            }
            Request::AllocateThese { attachment, addresses } => {
                self.lease(|leases, now| leases.allocate_these(attachment, addresses, now))
            }
            Request::Adopt { attachment, addresses } => {
                self.lease(|leases, now| leases.adopt(attachment, addresses, now))
            }
            Request::Release(attachment) => {
                if let Some(leases) = &mut self.leases {
                    leases.release(attachment);
                }
                Reply::Done
            }
            Request::Check { attachment, addresses } => self.check(attachment, addresses),
            Request::Status { wants_addresses } => self.could_add(*wants_addresses),
        }
    }

    fn lease(&mut self, ask: impl Fn(&mut Leases, Duration) -> Result<Vec<IpAddr>, LeaseError>) -> Reply {
        let reasons = self.not_ready_reasons();
        if !reasons.is_empty() {
            return refuse(RefusalKind::NotReady, reasons.join("; "));
        }
        if let Err(error) = self.observe_if_stale() {
            return refuse(RefusalKind::Internal, format!("read the kernel state: {error}"));
        }
        let Some(mtu) = self.mtu() else {
            return refuse(RefusalKind::NotReady, "the MTU of the underlay is not known yet".to_owned());
        };
        let now = self.epoch.elapsed();
        let Some(leases) = &mut self.leases else {
            return refuse(RefusalKind::NotReady, "our own pod CIDRs are not known yet".to_owned());
        };
        let mut given = ask(leases, now);
        if matches!(given, Err(LeaseError::Exhausted { .. } | LeaseError::InUse { .. })) {
            // A veth may have gone a moment ago without its notification having been heard.
            if let Err(error) = self.observe() {
                return refuse(RefusalKind::Internal, format!("read the kernel state: {error}"));
            }
            if let Some(leases) = &mut self.leases {
                given = ask(leases, now);
            }
        }
        self.publish_due = true;
        match given {
            Ok(addresses) => {
                Reply::Leased(Lease { addresses: addresses.into_iter().map(with_gateway).collect(), mtu })
            }
            Err(error) => no_lease(&error),
        }
    }

    /// Whether an ADD would succeed now.
    fn could_add(&mut self, wants_addresses: bool) -> Reply {
        let reasons = self.not_ready_reasons();
        if !reasons.is_empty() {
            // Without our own Node there is nothing to impair; without the datapath, pods lose the other nodes.
            let is_impaired = self.book.cluster().own.is_some() && self.tunnel.has_failed();
            let kind = if is_impaired { RefusalKind::Impaired } else { RefusalKind::NotReady };
            return refuse(kind, reasons.join("; "));
        }
        if let Err(error) = self.observe_if_stale() {
            return refuse(RefusalKind::Internal, format!("read the kernel state: {error}"));
        }
        if self.mtu().is_none() {
            return refuse(RefusalKind::NotReady, "the MTU of the underlay is not known yet".to_owned());
        }
        let now = self.epoch.elapsed();
        match self.leases.as_mut().map(|leases| leases.has_room(now)) {
            None => refuse(RefusalKind::NotReady, "our own pod CIDRs are not known yet".to_owned()),
            Some(Err(error)) if wants_addresses => no_lease(&error),
            Some(_) => Reply::Done,
        }
    }

    fn check(&mut self, attachment: &Attachment, addresses: &[IpAddr]) -> Reply {
        let reasons = self.not_ready_reasons();
        if !reasons.is_empty() {
            return refuse(RefusalKind::NotReady, reasons.join("; "));
        }
        // Always anew: the notification of a veth that was made a moment ago may not have been heard.
        if let Err(error) = self.observe() {
            return refuse(RefusalKind::Internal, format!("read the kernel state: {error}"));
        }
        let name = veth_name(attachment);
        let veth =
            self.reconciler.observed().and_then(|have| have.veths.iter().find(|veth| veth.name == name));
        let Some(alias) = veth.and_then(|veth| veth.alias.as_ref()) else {
            return refuse(RefusalKind::Mismatch, format!("there is no veth {name} of this attachment"));
        };
        if !same_set(&alias.addresses, addresses) {
            let message = format!("veth {name} holds {:?}, not {addresses:?}", alias.addresses);
            return refuse(RefusalKind::Mismatch, message);
        }
        Reply::Done
    }

    /// The MTU of this node's pods in bytes, once it can be told.
    pub(super) fn mtu(&self) -> Option<u32> {
        inner_mtu(&self.config, self.book.cluster().own.as_ref()?, self.reconciler.observed()?)
    }

    /// The smallest inner MTU in bytes of the ways to a peer.
    pub(super) fn peer_mtu(&self, peer: &Peer, path_mtus: &BTreeMap<IpAddr, u32>) -> Option<u32> {
        let inputs = self.inputs(path_mtus)?;
        peer.paths.iter().filter_map(|path| peer_mtu(inputs, path.underlay)).min()
    }
}

fn with_gateway(address: IpAddr) -> LeaseAddress {
    let gateway = match address {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    };
    LeaseAddress { address, gateway }
}

fn same_set(one: &[IpAddr], other: &[IpAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

fn no_lease(error: &LeaseError) -> Reply {
    let kind = match error {
        LeaseError::Exhausted { .. } | LeaseError::InUse { .. } => RefusalKind::Exhausted,
        LeaseError::NoCidr => RefusalKind::NotReady,
        LeaseError::Foreign { .. } | LeaseError::Shape => RefusalKind::Invalid,
    };
    refuse(kind, error.to_string())
}

fn refuse(kind: RefusalKind, message: String) -> Reply {
    Reply::Refused { kind, message }
}
