"""Network parts that the systems of r2kg.systems are composed of."""

import logging

# On CPUs with AVX512-BF16 bitsandbytes, which peft imports where it is installed, says that a kernel is missing which
# `r2kg.modules.llm` does not use: in every run, quantised or not.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
