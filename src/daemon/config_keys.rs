//! The table of settings: one row each, with its section, type, default and what people read about it.
//!
//! The example file, `corten config`, the checks and the error texts are all made from these rows, so a
//! setting is written here and in [`crate::config::Config`] and nowhere else.
//! `{state_dir}` and `{run_dir}` in a default stand for those settings' values.

use std::time::Duration;

use crate::config_values::Kind;

/// One setting.
#[derive(Debug)]
pub(crate) struct Key {
    /// Table of the file that it stands in; empty: the top.
    pub section: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// TOML text of the default.
    pub default: &'static str,
    /// For people; lines of the example file.
    pub doc: &'static str,
}

impl Key {
    /// `server.socket`, or `run_dir` at the top.
    pub(crate) fn path(&self) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.section, self.name) }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const LONGEST_IDLE: Duration = Duration::from_secs(1000 * 3600);

/// All settings, in the order in which the example file has them. `state_dir` and `run_dir` come first,
/// because other defaults are made of them.
pub(crate) const KEYS: &[Key] = &[
    Key {
        section: "",
        name: "state_dir",
        kind: Kind::Path,
        default: r#""/var/lib/corten""#,
        doc: "Images, records of pods and containers, writable layers. On a disk that lasts.",
    },
    Key {
        section: "",
        name: "run_dir",
        kind: Kind::Path,
        default: r#""/run/corten""#,
        doc: "Socket, pid file, pod monitors. On a tmpfs that a reboot clears.\n\
              A second daemon on the same run_dir or state_dir is refused.",
    },
    Key {
        section: "",
        name: "runtime",
        kind: Kind::OptionalPath,
        default: r#""""#,
        doc: "The corten-runtime program. Empty: the one beside the corten program,\n\
              else /usr/libexec/corten/corten-runtime.",
    },
    Key {
        section: "server",
        name: "socket",
        kind: Kind::Path,
        default: r#""{run_dir}/corten.sock""#,
        doc: "Where CRI is served. Default: corten.sock in run_dir.",
    },
    Key {
        section: "server",
        name: "socket_mode",
        kind: Kind::Mode,
        default: r#""0660""#,
        doc: "Permissions of the socket. Who may connect is root on this node.",
    },
    Key {
        section: "server",
        name: "socket_group",
        kind: Kind::Text,
        default: r#""""#,
        doc: "Group of the socket: a name in /etc/group, or a number. Empty: the daemon's own.",
    },
    Key {
        section: "server",
        name: "worker_threads",
        kind: Kind::Integer(1, 64),
        default: "2",
        doc: "Threads that serve requests. Blocking work has threads of its own.",
    },
    Key {
        section: "server",
        name: "slow_request",
        kind: Kind::Duration(Duration::from_millis(10), HOUR),
        default: r#""5s""#,
        doc: "A request that takes longer is logged with the step that it is in.",
    },
    Key {
        section: "server",
        name: "drain_deadline",
        kind: Kind::Duration(Duration::ZERO, HOUR),
        default: r#""10s""#,
        doc: "After SIGTERM: how long running operations may take to finish. Pods go on anyway.",
    },
    Key {
        section: "streaming",
        name: "address",
        kind: Kind::Address,
        default: r#""127.0.0.1""#,
        doc: "Where exec, attach and port-forward are served, to whoever has a URL that CRI gave out. The kubelet\n\
              connects from this node, so loopback is right unless clients of CRI are elsewhere.",
    },
    Key {
        section: "streaming",
        name: "port",
        kind: Kind::Integer(0, 65535),
        default: "0",
        doc: "Port there; 0: one that is free.",
    },
    Key {
        section: "streaming",
        name: "tls_cert",
        kind: Kind::OptionalPath,
        default: r#""""#,
        doc: "Serve them by TLS with this certificate (PEM, the chain after it). Read again when it changes.\n\
              Empty: without TLS.",
    },
    Key {
        section: "streaming",
        name: "tls_key",
        kind: Kind::OptionalPath,
        default: r#""""#,
        doc: "The certificate's private key (PEM).",
    },
    Key {
        section: "streaming",
        name: "idle_timeout",
        kind: Kind::Duration(SECOND, LONGEST_IDLE),
        default: r#""4h""#,
        doc: "A session in which no byte moves for so long is ended.",
    },
    Key {
        section: "log",
        name: "format",
        kind: Kind::Choice(&["text", "json"]),
        default: r#""text""#,
        doc: "\"text\" for people and the journal, \"json\" for machines. To stderr.",
    },
    Key {
        section: "log",
        name: "filter",
        kind: Kind::Filter,
        default: r#""info""#,
        doc: "A level (error, warn, info, debug, trace), or levels by module as in \"info,image=debug\".",
    },
    Key {
        section: "cgroup",
        name: "parent",
        kind: Kind::Cgroup,
        default: r#""/corten""#,
        doc: "Cgroup of pods whose request names none. The kubelet always names one.",
    },
    Key {
        section: "pod",
        name: "shm_size",
        kind: Kind::Bytes(4096, 1 << 40),
        default: r#""64MiB""#,
        doc: "Size of each pod's /dev/shm.",
    },
    Key {
        section: "pod",
        name: "monitor_deadline",
        kind: Kind::Duration(SECOND, HOUR),
        default: r#""10s""#,
        doc: "How long a pod's monitor may take to become ready.",
    },
    Key {
        section: "pod",
        name: "device_owner",
        kind: Kind::Choice(&["node", "security_context"]),
        default: r#""node""#,
        doc: "Whose the devices are that a container is given: as on the node, or of the user and group of\n\
              its security context (where it names them by number), so that others than root can use them.",
    },
    Key {
        section: "pod",
        name: "runtime_handlers",
        kind: Kind::Texts,
        default: r#"["corten"]"#,
        doc: "Handlers of a RuntimeClass that mean this runtime, besides none.",
    },
    Key {
        section: "image",
        name: "dir",
        kind: Kind::Path,
        default: r#""{state_dir}/images""#,
        doc: "Where unpacked layers are. Default: images in state_dir.",
    },
    Key {
        section: "image",
        name: "certs_dirs",
        kind: Kind::Paths,
        default: r#"["/etc/corten/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]"#,
        doc: "Where <registry host>/hosts.toml is looked for (mirrors, certificate authorities);\n\
              the first directory that has the host counts.",
    },
    Key {
        section: "image",
        name: "plain_http",
        kind: Kind::Hosts,
        default: "[]",
        doc: "Registries (host or host:port) that are spoken to without TLS. Those on loopback always may be.",
    },
    Key {
        section: "image",
        name: "parallel_layers",
        kind: Kind::Integer(1, 64),
        default: "4",
        doc: "How many layers of an image are fetched and unpacked at once.",
    },
    Key {
        section: "image",
        name: "pinned",
        kind: Kind::Texts,
        default: "[]",
        doc: "Image references that the kubelet's garbage collection must leave alone; \"registry/name*\" stands for\n\
              all that begin so.",
    },
    Key {
        section: "network",
        name: "config_dir",
        kind: Kind::Path,
        default: r#""/etc/cni/net.d""#,
        doc: "CNI configuration; the first *.conflist, *.conf or *.json by name is the pod network.",
    },
    Key {
        section: "network",
        name: "bin_dirs",
        kind: Kind::Paths,
        default: r#"["/opt/cni/bin"]"#,
        doc: "CNI plugins. The directory of our own plugin, corten-bridge (beside the corten program,\n\
              or /usr/libexec/corten), is always searched after these.",
    },
    Key {
        section: "network",
        name: "netns_dir",
        kind: Kind::Path,
        default: r#""/run/netns""#,
        doc: "Where network namespaces of pods are pinned. Several daemons may share it.",
    },
    Key {
        section: "network",
        name: "deadline",
        kind: Kind::Duration(SECOND, HOUR),
        default: r#""60s""#,
        doc: "How long one CNI plugin call may take.",
    },
    Key {
        section: "network",
        name: "builtin",
        kind: Kind::Choice(&["off", "auto"]),
        default: r#""off""#,
        doc: "\"auto\": when config_dir has no CNI configuration at start, write 99-corten.conflist there: a\n\
              bridge of our own. Leave it \"off\" where a cluster's network plugin will arrive later, or pods\n\
              start on the wrong network before it. `corten network init` writes the same file on demand.",
    },
    Key {
        section: "network",
        name: "bridge",
        kind: Kind::Bridge,
        default: r#""corten0""#,
        doc: "Bridge in the file that builtin = \"auto\" or `corten network init` writes.",
    },
    Key {
        section: "network",
        name: "subnets",
        kind: Kind::Subnets,
        default: r#"["10.187.0.0/16", "fdc0:7e00::/64"]"#,
        doc: "Subnets in that file. The IPv6 one is left out where the node has no IPv6. With builtin = \"auto\" the\n\
              pod CIDR that a cluster gives the node takes their place.",
    },
];
