"""The table of kernels in blockdev/README.md, from what devices-node found: a line of JSON for each kernel.

Without --write it says whether the table is right. Kernels of other versions than the table's say nothing about it.
"""

import json
import pathlib
import re
import sys

README = pathlib.Path(__file__).resolve().parents[3] / "blockdev/README.md"
BEGIN, END = "<!-- kernels begin -->\n", "<!-- kernels end -->\n"
# Bits of the driver's features, include/uapi/linux/ublk_cmd.h, and whether a device of ours is made with it.
FEATURES = {
    3: ("USER_RECOVERY", "used"), 4: ("USER_RECOVERY_REISSUE", "used"), 7: ("USER_COPY", "used"), 10: ("UPDATE_SIZE", "used"),
    0: ("SUPPORT_ZERO_COPY", ""), 9: ("USER_RECOVERY_FAIL_IO", ""), 11: ("AUTO_BUF_REG", ""), 12: ("QUIESCE", ""),
    13: ("PER_IO_DAEMON", ""), 15: ("BATCH_IO", ""), 17: ("SAFE_STOP_DEV", ""),
}


def version(kernel):
    return re.match(r"[0-9.]+(-[0-9]+)?", kernel["release"])[0]


def rows(kernels):
    def finding(kernel, name):
        return kernel["findings"][name]

    def yes(value):
        return "yes" if value else "no"

    def there(name):
        return lambda kernel: yes(finding(kernel, name)["found"] != "missing")

    def ublk(pattern, absent="–"):
        def cell(kernel):
            match = re.search(pattern, finding(kernel, "ublk")["detail"])
            return match[1] if match else absent
        return cell

    def feature(bit):
        def cell(kernel):
            bits = ublk(r"features (0x[0-9a-f]+)")(kernel)
            return "–" if bits == "–" else yes(int(bits, 16) >> bit & 1)
        return cell

    table = [("ublk", there("ublk")), ("— features", ublk(r"features (0x[0-9a-f]+)"))]
    table += [(f"— {name}{', ' + use if use else ''}", feature(bit)) for bit, (name, use) in FEATURES.items()]
    table += [
        ("— devices that fit (`ublks_max`)", ublk(r"devices, (?:at most )?(.*)$")),
        ("kernel NBD", there("nbd")),
        ("— write zeroes", lambda kernel: yes(kernel["nbdWriteZeroes"])),
        ("dm-crypt (LUKS2)", there("dm-crypt")),
    ]
    yield "| | " + " | ".join(version(kernel) for kernel in kernels) + " |"
    yield "| --- |" + " --- |" * len(kernels)
    for name, cell in table:
        yield f"| {name} | " + " | ".join(cell(kernel) for kernel in kernels) + " |"


def main():
    found = {version(kernel): kernel for kernel in map(json.loads, sys.stdin)}
    kernels = sorted(found.values(), key=lambda kernel: [int(part) for part in re.findall("[0-9]+", version(kernel))])
    table = "\n".join(rows(kernels)) + "\n"
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    if "--write" in sys.argv:
        README.write_text(before + BEGIN + table + END + after)
    elif old.splitlines()[:1] != table.splitlines()[:1]:
        print(f"the table of kernels in {README.name} is of others than {', '.join(found)}; --write makes it anew")
    elif old != table:
        sys.exit(f"{README} doesn't say what was found:\n{table}")


main()
