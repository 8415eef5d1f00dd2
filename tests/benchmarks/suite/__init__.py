"""The comparison of `make bench`."""

import warnings

# a machine without a login session; the embedded server then keeps its lock under /tmp
warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
