"""Kernels of our own for CPUs: what torch does there in many passes over memory, or in many calls, done in one.

``ops`` has them as functions of tensors, ``library`` compiles them. Nothing hangs on them: where they are
not there, and on every accelerator, the same is computed with torch (docs/adr/0002-kernels-of-our-own.md).
"""
