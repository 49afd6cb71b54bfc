"""Network parts that the systems of r2kg.systems are composed of."""

import logging
import os

# Before transformers is imported, in whichever process; what users set themselves stays.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# On CPUs with AVX512-BF16 bitsandbytes, which peft imports where it is installed, says that a kernel is missing which
# `r2kg.modules.llm` does not use: in every run, quantised or not.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
