"""Compile the Triton kernels for chips that need not be here: kerneltable.ops.triton_offline in a process of its own.

python triton_compile.py KERNEL '[{...}]'     (the fields of Target, as JSON)
"""

import json
import sys

from kerneltable.ops.triton_offline import Target, main

if __name__ == "__main__":
    main(sys.argv[1], [Target(**each) for each in json.loads(sys.argv[2])])
