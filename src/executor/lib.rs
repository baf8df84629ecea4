//! From an OCI bundle to a running process: a plan of named steps.
