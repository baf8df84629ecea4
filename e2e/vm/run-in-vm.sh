#!/bin/bash
# run-in-vm.sh - run a command as root in a throw-away Debian 13 guest with pure cgroup v2; output and exit code come back.
#
# usage: run-in-vm.sh [options] SHARE_DIR COMMAND...
#   SHARE_DIR is copied into the guest as /share (the working directory); bash runs COMMAND there. There is no network.
#   What COMMAND leaves in /out comes back in the folder given by --out.
# options:
#   --vm uml|qemu      uml (default): user-mode-linux, up in two seconds, one CPU, no nf_tables, no cpuset, no hugetlb
#                      qemu: software emulation of a whole machine with Debian's cloud kernel; about ten times slower
#   --lsm apparmor|selinux|none   the security module that is active (apparmor); selinux enforces Debian's policy, from a
#                      second disk image that is made when it is first asked for
#   --cpus N (2; qemu) --mem MIB (2048)  --timeout SECONDS (900)  --out DIR  --append "KERNEL ARGS"
#   --line             stdin and stdout of this script are a raw serial line of the guest's, whose device COMMAND finds as
#                      $VM_LINE; without it COMMAND has no stdin, and what it prints is shown when it has ended
#   --build            only build the guest images      --verbose   show the guest's console
# exit: the command's code; 124 timeout (0 seconds: none); 125 the guest died without reporting; 129, 130, 143 by HUP, INT, TERM
#
# Needs root and a Debian host; packages come from the mirrors that the host's apt is set up with. The images are built
# once, into $CORTEN_CACHE/vm (which may be deleted at any time). The guest's disk is copy-on-write, so that every run starts from the same state.
#
# The VM, and the build of images, run in sessions of their own, so that one kill ends all of it; the kernel ends the VM when
# this script is gone. A run's folder is locked by whoever uses it; folders that nobody locks are swept by the next run.
set -euo pipefail

# mmdebstrap calls this file as its hook: fetch the kernels with the new system's apt.
fetch_kernels() {
  export APT_CONFIG=${MMDEBSTRAP_APT_CONFIG:-$APT_CONFIG}
  mkdir -p "$1/.kernels"
  cd "$1/.kernels"
  cloud=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -1)
  exec apt-get -o APT::Sandbox::User=root download "$cloud" user-mode-linux
}
if [ "${1:-}" = --fetch-kernels ]; then fetch_kernels "$2"; fi

# what the project carries for hosts with SELinux
module=$(dirname "$0")/../../contrib/selinux/corten.cil
# what linux.uml lacks on newer processors
preload=$(dirname "$0")/xstate.c
images=${CORTEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/corten}/vm
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages=iproute2,iptables,nftables,libseccomp2,procps,psmisc,kmod,util-linux,mount,busybox-static,e2fsprogs,strace,curl,ca-certificates,apparmor,attr
selinux_packages='selinux-policy-default policycoreutils selinux-utils semodule-utils'
vm=uml lsm=apparmor cpus=2 mem=2048 timeout=900 out='' append='' line='' build='' verbose=''

while [ $# -gt 0 ]; do
  case $1 in
    --vm) vm=$2; shift 2 ;;
    --lsm) lsm=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --mem) mem=$2; shift 2 ;;
    --timeout) timeout=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --append) append=$2; shift 2 ;;
    --line) line=1; shift ;;
    --build) build=1; shift ;;
    --verbose) verbose=1; shift ;;
    --) shift; break ;;
    -*) echo "run-in-vm.sh: unknown option $1" >&2; exit 2 ;;
    *) break ;;
  esac
done
case $vm in uml | qemu) ;; *) echo "run-in-vm.sh: --vm is uml or qemu, not $vm" >&2; exit 2 ;; esac
case $lsm in
  apparmor) disk=base security='apparmor=1 security=apparmor audit=0' ;;
  selinux) disk=selinux security='security=selinux enforcing=1 audit=1' ;;
  none) disk=base security='lsm=landlock,yama audit=0' ;;
  *) echo "run-in-vm.sh: --lsm is apparmor, selinux or none, not $lsm" >&2; exit 2 ;;
esac

# make_ext4 TREE IMAGE SIZE: a file system without a journal that holds a copy of TREE
make_ext4() {
  rm -f "$2.tmp"
  mke2fs -q -F -t ext4 -b 4096 -O ^has_journal -E lazy_itable_init=1,nodiscard -m 0 -d "$1" "$2.tmp" "$3" >/dev/null 2>&1
  mv "$2.tmp" "$2"
}

install_host_tools() {
  local missing=()
  command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
  command -v mke2fs >/dev/null || missing+=(e2fsprogs)
  command -v gcc >/dev/null || missing+=(gcc libc6-dev)
  [ -e "$keyring" ] || missing+=(debian-archive-keyring)
  [ "$vm" = uml ] || command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
  [ ${#missing[@]} -eq 0 ] && return 0
  apt-get update -q >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}

# PID 1 of the guest, and the job runner that it starts
guest_files() {
  cat > "$1/usr/local/sbin/vm-init" <<'E'
#!/bin/busybox sh
# PID 1: the usual mounts, cgroup v2 with every controller, then the job
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux LANG=C.UTF-8
m() { busybox mount "$@"; }
m -t proc -o nosuid,nodev,noexec proc /proc
m -t sysfs -o nosuid,nodev,noexec sysfs /sys
busybox grep -q ' /dev ' /proc/mounts || m -t devtmpfs -o mode=0755,nosuid devtmpfs /dev
busybox mkdir -p /dev/pts /dev/shm /dev/mqueue
m -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
m -t tmpfs -o nosuid,nodev tmpfs /dev/shm
m -t mqueue mqueue /dev/mqueue
m -t tmpfs -o nosuid,nodev,mode=0755 tmpfs /run
m -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
m -t cgroup2 -o nosuid,nodev,noexec,nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
busybox ln -sf /proc/self/fd /dev/fd; busybox ln -sf fd/0 /dev/stdin; busybox ln -sf fd/1 /dev/stdout; busybox ln -sf fd/2 /dev/stderr
m -t securityfs securityfs /sys/kernel/security
m --make-rshared /
busybox mkdir -p /run/lock /run/netns /sys/fs/cgroup/init.scope
echo 1 > /sys/fs/cgroup/init.scope/cgroup.procs
read -r controllers < /sys/fs/cgroup/cgroup.controllers
for c in $controllers; do echo "+$c" > /sys/fs/cgroup/cgroup.subtree_control; done
busybox hostname vm; busybox ip link set lo up
if busybox grep -q security=selinux /proc/cmdline; then
  # this process stays in kernel_t, since it was started before there was a policy; services run in initrc_t
  /usr/sbin/load_policy -i
  /usr/sbin/restorecon -RF /run /dev /tmp 2>/dev/null
  /usr/bin/runcon system_u:system_r:initrc_t:s0 /usr/local/sbin/vm-run
else
  /usr/local/sbin/vm-run
fi
busybox sync
busybox poweroff -f
E
  cat > "$1/usr/local/sbin/vm-run" <<'E'
#!/bin/busybox sh
# Runs /share/.vm-job; its output, its exit code and /out go to the host
rc=/dev/null out=/dev/console tar= line=
busybox mkdir -p /share /out
if [ -b /dev/ubdb ]; then
 busybox mkdir -p /run/vmhost; busybox mount -t hostfs -o /run/vmhost none /run/vmhost
 rc=/run/vmhost/rc out=/run/vmhost/out tar=/run/vmhost/tar line=/dev/ttyS0; busybox mount -t ext4 -o noatime /dev/ubdb /share
else
 for d in /sys/class/virtio-ports/*; do read -r name < $d/name
  case $name in vm.rc) rc=/dev/${d##*/};; vm.out) out=/dev/${d##*/};; vm.tar) tar=/dev/${d##*/};; vm.line) line=/dev/${d##*/};; esac; done
 /usr/sbin/modprobe virtio_blk; busybox mount -t ext4 -o noatime /dev/vda /share
fi
cd /share
export VM_LINE=$line
# through a pipe, so that the job's output is never a device
{ /bin/bash /share/.vm-job 2>&1 </dev/null; echo $? > /run/vm-rc; } | busybox cat > $out
[ -n "$tar" ] && [ -n "$(busybox ls -A /out)" ] && busybox tar -C /out -cf - . > $tar
read -r code < /run/vm-rc; echo "rc $code" > $rc
E
  # critest loads its AppArmor profiles with it
  printf '#!/bin/sh\nexec "$@"\n' > "$1/usr/local/sbin/sudo"
  chmod 755 "$1"/usr/local/sbin/*
  echo vm > "$1/etc/hostname"
  echo 0123456789abcdef0123456789abcdef > "$1/etc/machine-id"
}

# the guest's tree, its kernels, and its disk image
build_guest() {
  [ -e "$cache/base.ext4" ] && return 0
  local root=$cache/root mirror modules package
  mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null | sed -n 's#/debian/*$##p' | head -1)}
  [ -n "$mirror" ] || { echo 'run-in-vm.sh: apt names no Debian mirror; set MIRROR' >&2; exit 2; }
  rm -rf "$root"
  printf 'Types: deb\nURIs: %s/%s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' \
    "$mirror" debian 'trixie trixie-updates' $keyring "$mirror" debian-security trixie-security $keyring > "$cache/guest.sources"
  mmdebstrap --variant=minbase --mode=root --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include=$packages --customize-hook="$(realpath "$0") --fetch-kernels \"\$1\"" trixie "$root" "$cache/guest.sources" >&2
  mkdir -p "$root/usr/lib/modules" "$root/usr/lib/uml"
  for package in "$root"/.kernels/linux-image-*.deb; do dpkg-deb -x "$package" "$cache/kernel.tmp"; done
  cp -a "$cache"/kernel.tmp/usr/lib/modules/* "$root/usr/lib/modules/"
  cp "$cache"/kernel.tmp/boot/vmlinuz-* "$cache/vmlinuz"
  dpkg-deb -x "$root"/.kernels/user-mode-linux_*.deb "$cache/uml.tmp"
  install -m755 "$cache/uml.tmp/usr/bin/linux.uml" "$root/usr/bin/linux.uml"
  gcc -Wall -Wextra -O2 -shared -fPIC -o "$root/usr/lib/uml/xstate.so" "$preload"
  cp -a "$cache"/uml.tmp/usr/lib/uml/modules/* "$root/usr/lib/modules/"
  rm -rf "$cache/kernel.tmp" "$cache/uml.tmp" "$root/.kernels"
  for modules in "$root"/usr/lib/modules/*; do chroot "$root" /usr/sbin/depmod "${modules##*/}"; done
  # uml has no nf_tables: iptables must be the legacy one there
  chroot "$root" update-alternatives --quiet --set iptables /usr/sbin/iptables-legacy
  chroot "$root" update-alternatives --quiet --set ip6tables /usr/sbin/ip6tables-legacy
  # the abstractions that a profile is written with stay, not Debian's hundred profiles
  find "$root/etc/apparmor.d" -maxdepth 1 -type f -delete
  guest_files "$root"
  make_ext4 "$root" "$cache/base.ext4" 4G
}

# the same tree with SELinux's tools and Debian's policy, enforced, and the project's module
build_selinux() {
  [ -e "$cache/selinux.ext4" ] && return 0
  local root=$cache/root-selinux
  rm -rf "$root"
  cp -a "$cache/root" "$root"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c \
    "apt-get update -q && apt-get install -y -q --no-install-recommends $selinux_packages && apt-get clean" >&2
  sed -i 's/^SELINUX=.*/SELINUX=enforcing/' "$root/etc/selinux/config"
  # the domains that start containers only log; containers stay confined
  printf '(typepermissive container_engine_t)\n(typepermissive initrc_t)\n(typepermissive kernel_t)\n' > "$root/root/node.cil"
  cp "$module" "$root/root/corten.cil"
  chroot "$root" /usr/sbin/semodule -n -i /root/node.cil /root/corten.cil >&2
  rm -rf "$root/etc/resolv.conf" "$root"/var/lib/apt/lists/*
  chroot "$root" /usr/sbin/setfiles -F /etc/selinux/default/contexts/files/file_contexts / >&2
  make_ext4 "$root" "$cache/selinux.ext4" 4G
  rm -rf "$root"
}

# Both run the VM with the line on 3 and 4, in the place of the subshell that calls them.
run_qemu() {
  exec setsid setpriv --pdeathsig TERM timeout -s KILL -k 5 "$timeout" \
    qemu-system-x86_64 -M q35 -accel tcg,thread=single,tb-size=512 -cpu Haswell-v4 -m "$mem" -smp "$cpus" \
    -nodefaults -no-user-config -display none -no-reboot -serial "file:$work/console" -kernel "$cache/vmlinuz" \
    -append "console=ttyS0 root=/dev/nvme0n1 rw rootfstype=ext4 rootwait quiet loglevel=4 mitigations=off $1" \
    -drive "if=none,id=d0,file=$cache/$disk.ext4,format=raw,cache=unsafe,snapshot=on,file.locking=off" -device nvme,serial=root,drive=d0 \
    -drive "if=none,id=d1,file=$work/share.ext4,format=raw,cache=unsafe" -device virtio-blk-pci,drive=d1 -device virtio-serial-pci \
    $(for p in out rc tar; do echo "-chardev file,id=$p,path=$work/o/$p -device virtserialport,chardev=$p,name=vm.$p"; done) \
    -chardev stdio,id=line,signal=off -device virtserialport,chardev=line,name=vm.line <&3 >&4 2> "$work/vmm.log"
}

# linux.uml needs the guest's libc, so it runs in a chroot of the image's own tree, in a private mount namespace; in a pid
# namespace besides, since it has a process for each one of its guest's.
run_uml() {
  # shellcheck disable=SC2016
  exec setsid setpriv --pdeathsig TERM timeout -s KILL -k 5 "$timeout" unshare -m --pid --fork --kill-child bash -c 'set -e
    root=$1 work=$2 cache=$3 mem=$4 append=$5
    mount --make-rprivate /
    mount -t proc proc "$root/proc"; mount --bind /dev "$root/dev"
    mount -t tmpfs t "$root/dev/shm"; mount -t tmpfs t "$root/run"
    mkdir "$root/run/vmhost" "$root/run/w" "$root/run/c"
    mount --bind "$work/o" "$root/run/vmhost"; mount --bind "$work" "$root/run/w"; mount --bind "$cache" "$root/run/c"
    cd "$root/run/w"
    code=0
    chroot "$root" env LD_PRELOAD=/usr/lib/uml/xstate.so /usr/bin/linux.uml mem="$mem"M ubd0=/run/w/cow,/run/c/$6.ext4 ubd1=/run/w/share.ext4 \
      root=/dev/ubda rw rootfstype=ext4 con=null con0=null,fd:2 con1=null ssl=null ssl0=fd:0,fd:1 quiet $append || code=$?
    exit $code' _ "$cache/root" "$work" "$cache" "$mem" "$1" "$disk" <&3 >&4 2> "$work/console"
}

# end_session PID: end a session that was started below: the VM at once, since nothing of it is kept, a build in its own time
end_session() {
  if [ -n "$work" ]; then
    # until setsid has run, it is one process only
    kill -KILL -- "-$1" 2>/dev/null || kill -KILL "$1" 2>/dev/null || :
  else
    kill -TERM -- "-$1" 2>/dev/null || kill -TERM "$1" 2>/dev/null || :
  fi
  wait "$1" 2>/dev/null || :
}

# the guest images are kept per version of what they are made from
cache=$images/$({ declare -f fetch_kernels make_ext4 guest_files build_guest build_selinux; echo "$packages" "$selinux_packages"; cat "$module" "$preload"; } | sha256sum | cut -c1-12)
mkdir -p "$cache"
if [ -n "$build" ]; then
  # The images are shared: one builds them, the others wait.
  exec 9> "$cache/lock"
  flock 9
  install_host_tools
  build_guest
  if [ "$lsm" = selinux ]; then build_selinux; fi
  exit 0
fi
[ $# -ge 2 ] || { sed -n '2,20p' "$0" >&2; exit 2; }

session='' work=''
finish() {
  trap '' HUP INT TERM
  [ -z "$session" ] || end_session "$session"
  [ -z "$work" ] || rm -rf "$work"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

setsid setpriv --pdeathsig TERM "$0" --build --vm "$vm" --lsm "$lsm" </dev/null >&2 &
session=$!
wait "$session" || exit $?
session=''

share=$(realpath "$1"); shift
exec 7> "$cache/runs"
flock 7
for left in "$cache"/run.*; do
  [ ! -d "$left" ] || flock -n "$left" rm -rf "$left" || :
done
work=$(mktemp -d "$cache/run.XXXXXX")
exec 8< "$work"
flock -s 8
exec 7>&-
mkdir "$work/o"
: > "$work/o/out"; : > "$work/o/rc"; : > "$work/o/tar"
make_ext4 "$share" "$work/share.ext4" "$(( $(du -sm --apparent-size "$share" | cut -f1) * 2 + 1024 ))M"
printf '%s\n' "$*" > "$work/job"
printf 'rm .vm-job\nwrite %s .vm-job\n' "$work/job" | debugfs -w -f - "$work/share.ext4" >/dev/null 2>&1 || true

if [ -n "$line" ]; then exec 3<&0 4>&1 </dev/null >&2; else exec 3</dev/null 4>/dev/null; fi
code=0
run_$vm "init=/usr/local/sbin/vm-init $security panic=-1 cgroup_no_v1=all $append" &
session=$!
exec 3<&- 4>&-
wait "$session" 2>/dev/null || code=$?
session=''
[ -z "$verbose" ] || cat "$work/console" >&2
cat "$work/o/out"
if [ -n "$out" ] && [ -s "$work/o/tar" ]; then
  mkdir -p "$out"
  tar -C "$out" -xf "$work/o/tar"
fi
rc=$(sed -n 's/^rc //p' "$work/o/rc")
[ -z "$rc" ] || exit "$rc"
if [ $code = 124 ] || [ $code = 137 ]; then
  echo "run-in-vm.sh: timeout after $timeout s" >&2
  tail -n 15 "$work/console" >&2
  exit 124
fi
echo "run-in-vm.sh: the guest died (status $code)" >&2
tail -n 30 "$work/console" "$work/vmm.log" >&2 2>/dev/null || true
exit 125
