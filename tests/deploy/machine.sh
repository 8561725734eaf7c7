#!/bin/bash
# Process 1 of one machine, in fresh pid, mount, net, uts and ipc namespaces: NAME IP FOLDER.
# Sees this machine's files; what it writes goes to a disk of its own, but for /shared. Ends up as sshd.
set -eu
NAME=$1 IP=$2 FOLDER=$3
hostname "$NAME"
mount --make-rprivate /
DISK=$FOLDER/$NAME.disk
mount -t tmpfs -o mode=755 machine /mnt
mkdir -p "$DISK/upper" "$DISK/work" "$DISK/tmp" "$DISK/root" /mnt/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$DISK/upper,workdir=$DISK/work" /mnt/root
R=/mnt/root
mount -t proc proc $R/proc
mount -t sysfs -o ro sysfs $R/sys 2>/dev/null || true
mount -t tmpfs -o mode=755 dev $R/dev
for device in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
    set -- $device
    mknod -m 666 $R/dev/$1 c $2 $3
done
mkdir -p $R/dev/pts $R/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts $R/dev/pts
ln -s pts/ptmx $R/dev/ptmx
ln -s /proc/self/fd $R/dev/fd
ln -s /proc/self/fd/0 $R/dev/stdin
ln -s /proc/self/fd/1 $R/dev/stdout
ln -s /proc/self/fd/2 $R/dev/stderr
mount -t tmpfs -o size=1g,mode=1777 shm $R/dev/shm
mkdir -p $R/shared && mount --bind "$FOLDER/shared" $R/shared
for place in tmp root; do
    mount --bind "$DISK/$place" $R/$place
done
chmod 1777 $R/tmp
mount -t tmpfs -o mode=755 run $R/run
mkdir -p $R/run/sshd $R/run/lock
# The tree and its environment may lie in a folder that is hidden by now.
for place in $MACHINE_SEES; do
    mkdir -p "$R$place"
    mount --bind "$place" "$R$place"
done
cp "$FOLDER/hosts" $R/etc/hosts
echo "$NAME" > $R/etc/hostname
: > $R/etc/resolv.conf
install -d -m 700 $R/root/.ssh
cp "$FOLDER/id" "$FOLDER/id.pub" $R/root/.ssh/
cp "$FOLDER/id.pub" $R/root/.ssh/authorized_keys
chmod 600 $R/root/.ssh/*
echo "export PATH=$MACHINE_BIN:\$PATH LANG=C.UTF-8 $MACHINE_ENV" > $R/root/.bashrc
cp $R/root/.bashrc $R/root/.profile
cp "$FOLDER/host_key" $R/run/host_key
chmod 600 $R/run/host_key
cat > $R/run/sshd_config <<EOS
ListenAddress $IP
HostKey /run/host_key
PidFile /run/sshd.pid
AuthorizedKeysFile .ssh/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PermitRootLogin prohibit-password
MaxStartups 50
Subsystem sftp /usr/lib/openssh/sftp-server
EOS
ip link set lo up
for _ in $(seq 200); do ip link show eth0 > /dev/null 2>&1 && break; sleep 0.05; done
ip addr add "$IP/24" dev eth0
ip link set eth0 up
touch "$FOLDER/$NAME.ready"
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=xterm \
    chroot $R /usr/sbin/sshd -D -e -f /run/sshd_config
