"""MIMIC-CXR-JPG with the reports of MIMIC-CXR."""
