#!/bin/sh
# Runs libvirtd out of ROOT, a directory of unpacked packages, which stays as it is: DIRECTORY holds its
# configuration, and IMAGE the guest's kernel. For `unshare --mount --pid --fork`: ends with all that it started.
set -e
root=$1 directory=$2 image=$3
mount --make-rprivate /
mkdir "$directory/layers"
mount -t tmpfs tmpfs "$directory/layers"
cd "$directory/layers"
mkdir upper work root
mount -t overlay -o "lowerdir=$root,upperdir=upper,workdir=work" overlay root
cd root
mkdir -p proc sys dev run tmp var/lib/libvirt/qemu var/log/libvirt/qemu var/cache/libvirt/qemu
mount -t proc proc proc
mount --bind /sys sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
# Without /dev/kvm: where there is one that QEMU cannot use, libvirt asks QEMU anew for each thing that it does.
mount -t tmpfs tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
chmod 1777 dev/shm tmp
ln -s pts/ptmx dev/ptmx
for node in null zero full random urandom tty; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
for shared in "$directory" "$image"; do
    mkdir -p ".$shared"
    mount --bind "$shared" ".$shared"
done
cp "$directory/passwd" "$directory/group" etc
cp "$directory/qemu.conf" etc/libvirt
# As the first process of its namespace, this shell has to wait for whatever loses its parent.
chroot . /usr/sbin/libvirtd --config "$directory/libvirtd.conf" &
wait
