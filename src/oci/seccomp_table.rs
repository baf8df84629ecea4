//! Which system calls the default seccomp profile allows, in groups, each with the reason beside it.
//!
//! Names are libseccomp's; one that is newer than a node's library may be must be in the executor's list of newer
//! calls. A group is a row; a call may stand in several capability groups (either
//! capability opens it) but never both in [`ALWAYS`] and in one of them: then the capability would be
//! without effect, and a test says so. Calls of one architecture only are harmless on the others,
//! where the name resolves to nothing.

/// System calls that belong together.
pub(crate) struct Group {
    /// Why they are allowed, or what they would open.
    #[cfg_attr(not(test), expect(dead_code, reason = "for people; a test sees that it is there"))]
    pub reason: &'static str,
    /// libseccomp names, separated by blanks.
    pub names: &'static str,
}

/// System calls that a capability opens.
pub(crate) struct Gated {
    /// The capability, as `CAP_…`.
    pub capability: &'static str,
    /// Why they are closed without it.
    #[cfg_attr(not(test), expect(dead_code, reason = "for people; a test sees that it is there"))]
    pub reason: &'static str,
    /// libseccomp names, separated by blanks.
    pub names: &'static str,
}

/// Allowed for every container.
pub(crate) const ALWAYS: &[Group] = &[
    Group {
        reason: "reading and writing through descriptors one has",
        names: "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek _llseek \
            sendfile sendfile64 splice tee vmsplice copy_file_range readahead sync_file_range \
            sync_file_range2 arm_sync_file_range fadvise64 fadvise64_64 arm_fadvise64_64 fallocate \
            cachestat",
    },
    Group {
        reason: "opening, closing and duplicating descriptors; permission is the file system's matter",
        names: "open openat openat2 creat close close_range dup dup2 dup3 fcntl fcntl64 flock ioctl pipe \
            pipe2 memfd_create name_to_handle_at",
    },
    Group {
        reason: "attributes of files",
        names: "stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx oldstat oldlstat oldfstat \
            access faccessat faccessat2 chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 \
            fchownat lchown lchown32 truncate truncate64 ftruncate ftruncate64 utime utimes futimesat \
            utimensat utimensat_time64 umask statfs statfs64 fstatfs fstatfs64 file_getattr file_setattr",
    },
    Group {
        reason: "extended attributes; trusted.* and security.* are checked by the kernel",
        names: "getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr \
            llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat",
    },
    Group {
        reason: "names in directories; device nodes need CAP_MKNOD and the device rules of the cgroup",
        names: "getdents getdents64 readdir getcwd chdir fchdir mkdir mkdirat rmdir link linkat unlink \
            unlinkat symlink symlinkat readlink readlinkat rename renameat renameat2 mknod mknodat",
    },
    Group {
        reason: "writing back; a container may wait for its own data",
        names: "sync syncfs fsync fdatasync msync",
    },
    Group {
        reason: "what is mounted here: the same as /proc/self/mountinfo says",
        names: "statmount listmount",
    },
    Group {
        reason: "memory of one's own",
        names: "brk mmap mmap2 munmap mremap mprotect madvise mincore mlock mlock2 mlockall munlock \
            munlockall mseal remap_file_pages map_shadow_stack memfd_secret pkey_alloc pkey_free \
            pkey_mprotect membarrier process_mrelease",
    },
    Group {
        reason: "making, running and ending processes; clone is ruled by its flags, clone3 is not here",
        names: "fork vfork execve execveat exit exit_group wait4 waitid waitpid pidfd_open pidfd_send_signal \
            restart_syscall set_tid_address set_robust_list get_robust_list rseq",
    },
    Group {
        reason: "looking into processes one may ptrace anyway: safe since ptrace obeys seccomp (Linux 4.8)",
        names: "ptrace process_vm_readv process_vm_writev",
    },
    Group {
        reason: "who and where a process is; changing it needs the capability, which the kernel asks for",
        names: "getpid getppid gettid getpgid getpgrp setpgid getsid setsid getuid getuid32 geteuid \
            geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid getresgid32 \
            getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid \
            setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid \
            setfsgid32 setgroups setgroups32 capget capset prctl",
    },
    Group {
        reason: "giving up rights of one's own",
        names: "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self lsm_get_self_attr \
            lsm_set_self_attr lsm_list_modules",
    },
    Group {
        reason: "signals",
        names: "kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigreturn \
            rt_sigtimedwait rt_sigtimedwait_time64 rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack signal \
            sigaction sigprocmask sigpending sigsuspend sigreturn pause signalfd signalfd4",
    },
    Group {
        reason: "waiting for descriptors and for other threads",
        names: "select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create \
            epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 \
            eventfd eventfd2 futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue",
    },
    Group {
        reason: "asynchronous files of the old kind; io_uring is not here: it passes system calls by",
        names: "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
    },
    Group {
        reason: "watching files; fanotify_mark is of no use without fanotify_init",
        names: "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark",
    },
    Group {
        reason: "reading clocks, sleeping, timers; adjtimex and clock_adjtime also read, and set only with CAP_SYS_TIME",
        names: "time times gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 \
            clock_nanosleep clock_nanosleep_time64 nanosleep alarm getitimer setitimer timer_create \
            timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
            timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 adjtimex \
            clock_adjtime clock_adjtime64",
    },
    Group {
        reason: "priorities and processors; raising them needs CAP_SYS_NICE, which the kernel asks for",
        names: "sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam \
            sched_setparam sched_getscheduler sched_setscheduler sched_get_priority_max \
            sched_get_priority_min sched_rr_get_interval sched_rr_get_interval_time64 getpriority \
            setpriority nice ioprio_get ioprio_set getcpu",
    },
    Group {
        reason: "limits and accounts of one's own",
        names: "getrlimit ugetrlimit setrlimit prlimit64 getrusage sysinfo uname olduname",
    },
    Group { reason: "random numbers", names: "getrandom" },
    Group {
        reason: "sockets one has; making one is ruled by its family",
        names: "socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt \
            setsockopt send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64",
    },
    Group {
        reason: "the one door to sockets of old 32-bit programs; its arguments are in memory, out of a filter's sight",
        names: "socketcall",
    },
    Group {
        reason: "System V and POSIX IPC, which has a namespace of its own",
        names: "ipc shmget shmat shmctl shmdt semget semop semctl semtimedop semtimedop_time64 msgget msgsnd \
            msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedsend_time64 mq_timedreceive \
            mq_timedreceive_time64 mq_notify mq_getsetattr",
    },
    Group {
        reason: "what the C library needs of the processor",
        names: "arch_prctl modify_ldt set_thread_area get_thread_area set_tls get_tls cacheflush breakpoint",
    },
    Group {
        reason: "the way back out of probes that the node's administrator has set; without it the probed program dies",
        names: "uretprobe uprobe",
    },
];

/// Allowed for containers that have the capability.
pub(crate) const GATED: &[Gated] = &[
    Gated {
        capability: "CAP_SYS_ADMIN",
        reason: "mounting, namespaces, quotas, host names: each has been a way out of a container",
        names: "mount umount umount2 mount_setattr move_mount open_tree open_tree_attr fsopen fsconfig \
            fsmount fspick unshare setns clone clone3 sethostname setdomainname quotactl quotactl_fd \
            fanotify_init lookup_dcookie bpf perf_event_open syslog",
    },
    Gated { capability: "CAP_BPF", reason: "programs in the kernel", names: "bpf" },
    Gated {
        capability: "CAP_PERFMON",
        reason: "sees other containers and the kernel at work",
        names: "perf_event_open",
    },
    Gated { capability: "CAP_SYSLOG", reason: "the kernel's log is the whole node's", names: "syslog" },
    Gated {
        capability: "CAP_DAC_READ_SEARCH",
        reason: "opens files by inode number, past the mount it was given",
        names: "open_by_handle_at",
    },
    Gated {
        capability: "CAP_SYS_BOOT",
        reason: "in the pod's PID namespace it ends the pod; kexec stays denied",
        names: "reboot",
    },
    Gated { capability: "CAP_SYS_CHROOT", reason: "of use only to who may do it", names: "chroot" },
    Gated {
        capability: "CAP_SYS_MODULE",
        reason: "code in the kernel",
        names: "init_module finit_module delete_module",
    },
    Gated {
        capability: "CAP_SYS_NICE",
        reason: "places memory on NUMA nodes; kernel bugs have been here",
        names: "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    },
    Gated { capability: "CAP_SYS_PACCT", reason: "process accounting is the whole node's", names: "acct" },
    Gated {
        capability: "CAP_SYS_PTRACE",
        reason: "tells kernel pointers apart, takes descriptors of others, advises on memory of others",
        names: "kcmp pidfd_getfd process_madvise",
    },
    Gated { capability: "CAP_SYS_RAWIO", reason: "the processor's ports", names: "iopl ioperm" },
    Gated {
        capability: "CAP_SYS_TIME",
        reason: "the clock is the whole node's",
        names: "settimeofday stime clock_settime clock_settime64",
    },
    Gated { capability: "CAP_SYS_TTY_CONFIG", reason: "hangs up terminals of others", names: "vhangup" },
];

/// Denied whatever the capabilities; only here so that the reasons are written down and tested.
#[cfg(test)]
pub(crate) const NEVER: &[Group] = &[
    Group {
        reason: "does file and socket work that no filter sees; a long row of kernel bugs",
        names: "io_uring_setup io_uring_enter io_uring_register",
    },
    Group { reason: "the kernel's key rings have no namespace", names: "add_key request_key keyctl" },
    Group {
        reason: "holds the kernel at a page fault: the lever of most race exploits",
        names: "userfaultfd",
    },
    Group {
        reason: "another kernel, or another root for the whole mount namespace",
        names: "kexec_load kexec_file_load pivot_root swapon swapoff",
    },
    Group { reason: "moves memory of other processes between nodes", names: "move_pages migrate_pages" },
    Group {
        reason: "obsolete: without users, gone, or a museum of bugs",
        names: "_sysctl afs_syscall bdflush create_module get_kernel_syms getpmsg nfsservctl putpmsg \
            query_module security sysfs tuxcall uselib ustat vm86 vm86old vserver",
    },
];
