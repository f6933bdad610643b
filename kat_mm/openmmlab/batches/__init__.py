"""Loading, packing and copying batches; batches of random images."""
