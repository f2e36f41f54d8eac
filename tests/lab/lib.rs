//! The lab: nodes as namespaces on one machine.
