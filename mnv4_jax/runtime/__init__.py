"""The machine below a run: devices, processes, memory, preemption, files of lines.

Must not know pictures, models or training.
"""
