//! The outside: Node file, CNI socket, admin HTTP. Asynchronous; decides nothing.
