"""Decode heads and segmentors that keep a GPU busy; losses. Needs mmseg."""
