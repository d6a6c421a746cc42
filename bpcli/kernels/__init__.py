"""Compiled code: functions over flat arrays that any tape runs through; Numba is imported where they are compiled."""
