# What the proofs share on the host; read by them, in their folder's checkout. Makes $ANKOLE name the
# binary: without it, the release build is made.
cd "$(dirname "$0")/../../.."

if [ -z "${ANKOLE:-}" ]; then
    cargo build --quiet --release -p ankole -p ankole-tgt-plugin
    ANKOLE=${CARGO_TARGET_DIR:-target}/release/ankole
fi

# in_guest PROOF DRIVER@KERNEL[:FILESYSTEM[+luks]] OPTIONS…: runs PROOF.guest in a machine that has the
# binary, with $DRIVER, $FILESYSTEM and $LUKS set. Each OPTION is one of ci/vm/run.
in_guest() (
    proof=$1 driver=${2%%@*} rest=${2#*@}
    kernel=${rest%%:*} filesystem=${rest#*:}
    [ "$filesystem" != "$rest" ] || filesystem=ext4
    case $filesystem in *+luks) luks=yes ;; *) luks= ;; esac
    shift 2
    packages=jq,e2fsprogs,xfsprogs,cryptsetup-bin,fio
    if [ $driver = tgt ]; then # from beside the binary, as on a node
        packages=$packages,tgt,open-iscsi
        set -- "$@" -f "${ANKOLE%/*}/libbs_ankole.so"
    fi
    echo "== $proof: $driver, $kernel, ${filesystem%+luks}${luks:+ on LUKS2}"
    exec ci/vm/run -k "$kernel" -p $packages -f "$ANKOLE" -f ci/vm/tests/guest.sh \
        -e "DRIVER=$driver" -e "FILESYSTEM=${filesystem%+luks}" -e "LUKS=$luks" "$@" -- \
        "$(cat "ci/vm/tests/$proof.guest")"
)
