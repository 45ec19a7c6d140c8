# What the proofs share in the guest, where they run as root: $DRIVER shows volume v1, on which is a
# $FILESYSTEM, with LUKS2 between if $LUKS says so. Every step says what it proves; the first that fails
# ends all.
set -euo pipefail
export ANKOLE_DATA=${ANKOLE_DATA:-/root/data}
# No udev is here: libdevmapper has to make its nodes itself.
export DM_DISABLE_UDEV=1
started=$SECONDS

step() { echo "[$((SECONDS - started)) s] $*"; }
fail() {
    exec >&2 # wherever the output of the step goes
    echo "FAILED: $*"
    ankole volume why v1 || true
    tail -n 20 $ANKOLE_DATA/logs/*v1* 2>/dev/null || true
    exit 1
}
until_true() { # WHAT SECONDS COMMAND…
    local what=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@"; do
        if [ $SECONDS -ge $deadline ]; then
            echo w >/proc/sysrq-trigger # the kernel's log says what hangs where
            fail "$what: not within the time"
        fi
        sleep 0.2
    done
}
ended() { ! kill -0 "$1" 2>/dev/null; }
no_errors() { # the kernel has told no client of an error
    if dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|XFS.*(error|corrupt|shutdown)'; then fail "the kernel saw errors"; fi
}
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# ---- volume v1 -----------------------------------------------------------------------------------

show() { ankole volume show v1 -o json | jq -r "$1"; }
healthy() { [ "$(show .robustness)" = healthy ]; }
serve() { # standalone, with the driver that shows devices
    case $DRIVER in
    ublk) modprobe ublk_drv ;;
    nbd) modprobe nbd ;;
    tgt) # what systemd and udev do elsewhere; nbd can't be loaded, so that auto takes this
        mkdir -p /run/lock /etc/modprobe.d
        echo 'install nbd /bin/false' >/etc/modprobe.d/nbd.conf # newer kernels load it when it is asked for
        modprobe -a iscsi_tcp sd_mod
        echo InitiatorName=iqn.2026-11.test:guest >/etc/iscsi/initiatorname.iscsi
        iscsid
        ;;
    esac
    ankole standalone "$@" >/run/standalone 2>&1 &
    STANDALONE=$!
    until_true "standalone serves" 60 grep -q 'ankole standalone' /run/standalone
}
attach() { # sets $DEVICE
    DEVICE=$(ankole volume attach v1 -o name)
    case $DEVICE in
    /dev/ublkb*) [ $DRIVER = ublk ] ;;
    /dev/nbd*) [ $DRIVER = nbd ] ;;
    /dev/sd*) [ $DRIVER = tgt ] ;;
    *) false ;;
    esac || fail "it is $DEVICE"
    [ "$(readlink -f /dev/ankole/v1)" = $DEVICE ] || fail "/dev/ankole/v1 leads elsewhere"
}
device_is_gone() {
    if [ -b $DEVICE ] && [ "$(blockdev --getsize64 $DEVICE)" != 0 ]; then return 1; fi
    [ ! -e /dev/ankole/v1 ] && [ ! -L /dev/ankole/v1 ]
}
end_serving() {
    kill $STANDALONE
    wait $STANDALONE || fail "standalone left something behind: $(tail -n 5 /run/standalone)"
}

# ---- what is on it: $ON is the device that the file system is on ---------------------------------

KEY=/run/key
format() { # the first time, and mounts it
    if [ -n "$LUKS" ]; then
        printf secret >$KEY
        # An emulated processor would derive the key for minutes.
        cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file $KEY $DEVICE
    fi
    unlock
    mkfs.$FILESYSTEM -q $ON
    mount $ON /mnt
}
unlock() {
    ON=$DEVICE
    [ -n "$LUKS" ] || return 0
    cryptsetup open --allow-discards --key-file $KEY $DEVICE v1 || fail "the volume isn't unlocked"
    ON=/dev/mapper/v1
}
lock() { [ -z "$LUKS" ] || cryptsetup close v1; }
check_filesystem() { # not mounted
    case $FILESYSTEM in
    ext4) fsck.ext4 -fn $ON ;;
    xfs) xfs_repair -n $ON ;;
    esac >/run/fsck 2>&1 || fail "$(cat /run/fsck)"
}
grow_filesystem() { # to the size of its device, while mounted
    [ -z "$LUKS" ] || cryptsetup resize --key-file $KEY v1
    case $FILESYSTEM in
    ext4) resize2fs $ON ;;
    xfs) xfs_growfs /mnt ;;
    esac >/run/resize 2>&1 || fail "$(cat /run/resize)"
}
write_files() { # MIB, and remembers their checksums
    mkdir -p /mnt/files
    head -c "$1"M /dev/urandom | split -b 128k - /mnt/files/
    (cd /mnt/files && sha256sum *) >/run/sums
}
check_files() { (cd /mnt/files && sha256sum --quiet -c /run/sums) || fail "files have changed"; }
