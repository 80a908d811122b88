"""One pytest session: connects the stages, from what tests declare to what reports read.

Only the plugin, its fixtures and the commands import this room; no stage does.
"""
