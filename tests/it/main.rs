//! Tests that need root or a second process.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod cleanup;
mod cluster;
mod cni;
mod cni_fire;
mod cni_spec;
mod config;
mod containerd;
mod control_plane;
mod corpus;
mod deploy;
mod egress;
mod flannel;
mod heal;
mod hostile;
mod install;
mod kube;
mod lab;
mod load;
mod manifests;
mod metrics;
mod mtu;
mod nodes;
mod operate;
mod overlay;
mod readme;
mod restart;
mod static_build;
mod step_down;
mod stream;
mod tidy;
mod tunnel_gso;
