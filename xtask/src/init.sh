#!/bin/busybox sh
# First process of a test machine: sets up what an ordinary system has, runs the tests on the second
# serial line, says how they ended there, and turns the machine off. Kernel messages go to the first.
/bin/busybox --install -s /bin
# Another program than the ping that tests know.
rm -f /bin/ping
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mount -t securityfs securityfs /sys/kernel/security

while read -r module; do
    insmod "/modules/$module" || echo "init: $module was not loaded"
done </modules/order
ip link set lo up
hostname ztseg-vm

set --
while IFS= read -r argument; do
    set -- "$@" "$argument"
done </ztseg/args
read -r limit </ztseg/limit

export ZTSEG_IN_VM=1 ZTSEG_BIN=/ztseg/ztseg ZTSEG_WORKSPACE=/ztseg
export ZTSEG_APPLICATIONS=/ztseg/applications RUST_BACKTRACE=1 RUST_LIB_BACKTRACE=0
cd /ztseg
(
    stty raw -echo
    timeout -s KILL "$limit" /ztseg/kernel --color never "$@"
    echo "ztseg-vm: exit $?"
) </dev/ttyS1 >/dev/ttyS1 2>&1
poweroff -f
