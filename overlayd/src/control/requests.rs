//! Answers the CNI plugin.

use std::collections::BTreeMap;
use std::net::IpAddr;

use wire::ipc::{Attachment, Lease, LeaseAddress, RefusalKind, Reply, Request};
use wire::tag::{GATEWAY_V4, GATEWAY_V6, veth_name};

use super::Control;
use crate::core::cluster::Peer;
use crate::core::desired::{inner_mtu, peer_mtu};
use crate::core::leases::LeaseError;
use crate::edge::cni::Call;

impl Control {
    pub(super) fn answer(&mut self, call: Call) {
        let reply = self.reply(&call.request);
        if let Reply::Refused { kind, message } = &reply {
            tracing::info!(request = ?call.request, ?kind, %message, "request of the CNI plugin refused");
        } else {
            tracing::debug!(request = ?call.request, ?reply, "request of the CNI plugin answered");
        }
        // A client that went away gets nothing; what was allocated for it expires.
        let _ = call.reply.send(reply);
    }

    fn reply(&mut self, request: &Request) -> Reply {
        match request {
            Request::Allocate(attachment) => self.allocate(attachment, None),
            Request::Taken { attachment, addresses } => self.allocate(attachment, Some(addresses)),
            Request::Release(attachment) => {
                if let Some(leases) = &mut self.leases {
                    leases.release(attachment);
                }
                Reply::Done
            }
            Request::Check { attachment, addresses } => self.check(attachment, addresses),
        }
    }

    fn allocate(&mut self, attachment: &Attachment, taken: Option<&[IpAddr]>) -> Reply {
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
        let mut given = match taken {
            None => leases.allocate(attachment, now),
            Some(taken) => leases.taken(attachment, taken, now),
        };
        if matches!(given, Err(LeaseError::Exhausted { .. })) {
            // A veth may have gone a moment ago without its notification having been heard.
            if let Err(error) = self.observe() {
                return refuse(RefusalKind::Internal, format!("read the kernel state: {error}"));
            }
            if let Some(leases) = &mut self.leases {
                given = leases.allocate(attachment, now);
            }
        }
        self.publish_due = true;
        match given {
            Ok(addresses) => {
                Reply::Leased(Lease { addresses: addresses.into_iter().map(with_gateway).collect(), mtu })
            }
            Err(error @ LeaseError::Exhausted { .. }) => refuse(RefusalKind::Exhausted, error.to_string()),
            Err(error @ LeaseError::NoCidr) => refuse(RefusalKind::NotReady, error.to_string()),
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
        inner_mtu(&self.config, self.cluster.own.as_ref()?, self.reconciler.observed()?)
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

fn refuse(kind: RefusalKind, message: String) -> Reply {
    Reply::Refused { kind, message }
}
