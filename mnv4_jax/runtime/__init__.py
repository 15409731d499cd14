"""The machine that a run uses: devices, processes, memory, preemption, files of lines.

Must not import pictures, models or training.
"""
