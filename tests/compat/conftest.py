import kat_mm.compat

kat_mm.compat.install()
