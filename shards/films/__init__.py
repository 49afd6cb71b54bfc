"""Pixels: raw rasters and DICOM to grey uint8, stored films at training speed."""
