//! Pod networks: pinned network namespaces, CNI, and the built-in bridge plugin.
