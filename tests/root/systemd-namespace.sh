#!/bin/bash
# A real systemd as PID 1 of private namespaces, for the tests of ckptd's units.
#
#   systemd-namespace.sh run STATE_DIR [PATH...]     prints the pid of that systemd when it is up; ends when stdin does
#   systemd-namespace.sh exec PID COMMAND...         a command beside it, as root
#
# Inside, / is the host's tree under an overlay whose upper layer is a tmpfs: nothing of the host is written. Each PATH
# (the interpreter, the clone) is bound read-only at its own place and made reachable for every user. From outside, the
# files are under /proc/PID/root. When stdin ends, also because the test run was killed, all of it goes: processes,
# mounts, cgroup. Needs root, systemd, util-linux, procps, overlayfs and a mounted cgroup2; no D-Bus, no logind, no network.
set -euo pipefail

run() {
  state=$1
  hierarchy=$(findmnt --noheadings --types cgroup2 --output TARGET | head -n 1)
  cgroup=$hierarchy/ckptd-test-$$
  mkdir -p "$state/layers"
  trap clean_up EXIT
  trap 'exit 143' TERM INT HUP
  mkdir "$cgroup"
  (
    echo "$BASHPID" >"$cgroup/cgroup.procs" # first of all: this becomes the root of the new cgroup namespace
    exec unshare --fork --kill-child --pid --mount --uts --ipc --cgroup "$0" become "$@" </dev/null >"$state/log" 2>&1
  ) &
  outer=$!
  wait_until 'manager=$(tr -d " " <"/proc/$outer/task/$outer/children") && [ "$(cat "/proc/$manager/comm")" = systemd ]'
  # unshare itself has no number in there, and systemd would stumble over it: it goes back to where this script is
  echo "$outer" >"$hierarchy$(sed -n 's/^0:://p' /proc/self/cgroup)/cgroup.procs" || true
  wait_until 'is_up "$manager"'
  echo "$manager"
  cat >/dev/null
}

wait_until() {
  for _ in $(seq 300); do
    if eval "$1" 2>/dev/null; then return; fi
    if ! kill -0 "$outer" 2>/dev/null; then break; fi
    sleep 0.05
  done
  echo "systemd did not come up: $1" >&2
  cat "$state/log" >&2
  exit 1
}

is_up() {
  case $(enter "$1" systemctl is-system-running 2>/dev/null) in running | degraded) ;; *) false ;; esac
}

clean_up() {
  if [ -n "${outer-}" ]; then # --kill-child takes PID 1 along, and PID 1 everyone
    kill -KILL "$outer" 2>/dev/null || true
    wait "$outer" 2>/dev/null || true
  fi
  for _ in $(seq 200); do
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
    if [ ! -e "$cgroup" ]; then break; fi
    sleep 0.05
  done
  rmdir "$state/layers" 2>/dev/null || true
}

enter() {
  pid=$1
  shift
  nsenter --target "$pid" --mount --pid --uts --ipc --cgroup --root --wdns=/ \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root "$@"
}

become() { # in the new namespaces, still with the host's tree: builds the root, and becomes systemd
  state=$1
  shift
  layers=$state/layers root=$state/layers/root
  mount -t tmpfs -o mode=0755 tmpfs "$layers"
  mkdir "$layers/upper" "$layers/work" "$root"
  mount -t overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" overlay "$root"
  build_kernel_mounts
  for disk in /home /srv; do # file systems of their own, as data have
    mkdir -p "$root$disk"
    mount -t tmpfs -o mode=0755 tmpfs "$root$disk"
  done
  for path in "$@"; do show "$path"; done
  build_units
  cd "$root"
  mkdir .old
  pivot_root . .old
  umount --lazy /.old
  rmdir /.old
  mount --make-rshared / # as on a real host, so that services' own namespaces hear of new mounts
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 container=ckptd-test \
    SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/systemd/system:/run/units SYSTEMD_GENERATOR_PATH=/run/no-generators \
    SYSTEMD_LOG_TARGET=journal \
    /lib/systemd/systemd --system --unit=ckptd-test.target --show-status=0
}

build_kernel_mounts() {
  mount -t proc proc "$root/proc"
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs -o mode=0755 tmpfs "$root/run"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
  while read -r name major minor; do mknod -m 666 "$root/dev/$name" c "$major" "$minor"; done <<-END
	null 1 3
	zero 1 5
	full 1 7
	random 1 8
	urandom 1 9
	tty 5 0
	END
  mkdir -m 1777 "$root/dev/shm"
  mkdir "$root/dev/pts" "$root/dev/mqueue"
  mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
}

show() { # the path $1, read-only, and its parents passable: the tests' ckptd runs as an ordinary user
  mkdir -p "$root$1"
  mount --bind "$1" "$root$1"
  mount -o remount,bind,ro "$root$1"
  parent=$(dirname "$1")
  while [ "$parent" != / ]; do
    chmod o+x "$root$parent" 2>/dev/null || true # a parent inside an earlier bind is read-only, and passable already
    parent=$(dirname "$parent")
  done
}

build_units() { # only what the tests need: no udev, getty, fstab, network, nor anything that this host has enabled
  mkdir -p "$root/run/units" "$root/run/no-generators" "$root/etc/systemd/system" "$root/etc/systemd/user"
  mount -t tmpfs -o mode=0755 tmpfs "$root/etc/systemd/system"
  mount -t tmpfs -o mode=0755 tmpfs "$root/etc/systemd/user"
  for unit in sysinit.target basic.target multi-user.target sockets.target timers.target paths.target slices.target \
    shutdown.target umount.target local-fs.target local-fs-pre.target swap.target user.slice \
    systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
    cp "/lib/systemd/system/$unit" "$root/run/units/"
  done
  cat >"$root/run/units/ckptd-test.target" <<-END
	[Unit]
	Requires=basic.target
	Wants=systemd-journald.service
	After=basic.target
	END
  cat >"$root/run/units/user@.service" <<-END
	[Service]
	Type=notify
	User=%i
	ExecStart=/lib/systemd/systemd --user
	Environment=XDG_RUNTIME_DIR=/run/user/%i
	UnsetEnvironment=SYSTEMD_UNIT_PATH SYSTEMD_GENERATOR_PATH
	RuntimeDirectory=user/%i
	RuntimeDirectoryMode=0700
	Delegate=yes
	KillMode=mixed
	END
  mkdir -p "$root/etc/systemd/journald.conf.d"
  printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitIntervalSec=0\n' >"$root/etc/systemd/journald.conf.d/test.conf"
  rm -rf "$root/var/log/journal"
  rm -f "$root/etc/fstab"
  if [ ! -s "$root/etc/machine-id" ]; then echo c0ffee00c0ffee00c0ffee00c0ffee00 >"$root/etc/machine-id"; fi
}

command=${1-}
shift || true
case $command in
  run | become) "$command" "$@" ;;
  exec) enter "$@" ;;
  *) sed -n '3,5p' "$0" >&2; exit 2 ;;
esac
