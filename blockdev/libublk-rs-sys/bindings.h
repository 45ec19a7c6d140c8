/* What the bindings are made from: the errors and ioctl encoding that ublk_cmd.h uses, and it. */
#include <asm/ioctl.h>
#include <linux/errno.h>
#include "ublk_cmd.h"
