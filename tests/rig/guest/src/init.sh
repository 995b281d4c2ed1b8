#!/bin/sh
# The guest's first process: mounts what programs expect, loads drivers, then runs a shell on the
# console. With "companion.shell" on the kernel's command line it runs the commands that come
# through the virtio port of that name instead, with "companion.shell=/dev/..." those that come
# through that terminal; tests/rig/guest/guest.py and tests/rig/guest/uml.py have the other end.
export PATH=/bin HOME=/
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
# User Mode Linux has its drivers built in, and boots with other kernels' modules here.
[ -e "/lib/modules/$(uname -r)" ] && for module in $(cat /etc/modules); do
    modprobe "$module"
done

case $(cat /proc/cmdline) in
*companion.shell=*)
    port=$(sed 's/.*companion.shell=//; s/ .*//' /proc/cmdline)
    stty raw -echo <"$port" ;;
*companion.shell*) ;;
*) exec setsid cttyhack sh ;; # somebody sits at the console
esac

# The driver learns its ports' names from the device some time after it was loaded.
find_port() {
    for name in /sys/class/virtio-ports/*/name; do
        if [ "$(cat "$name" 2>/dev/null)" = companion.shell ]; then
            name=${name%/name}
            port=/dev/${name##*/}
        fi
    done
}
until [ -n "$port" ]; do
    find_port
    [ -n "$port" ] || usleep 10000
done

exec 3<>"$port"
# The line break ends what a guest that was reset has left unfinished.
printf '\nREADY %s\n' "$(cut -d ' ' -f 1 /proc/uptime)" >&3
while read -r token command <&3; do
    echo "$command" | base64 -d >/tmp/command
    sh /tmp/command </dev/null >&3 2>&1
    # The line break before the token ends whatever the command has left unfinished.
    printf '\n%s %d\n' "$token" $? >&3
done
# The port was closed: whoever ran this guest is gone.
poweroff -f
