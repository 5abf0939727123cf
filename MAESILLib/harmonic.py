from MAESILLib.prior import QUICK, THOROUGH, smooth_fill


def harmonic_fill(image, known, tolerance=1e-4, stop=None):
    return smooth_fill(image, known, (8, 8, 8), QUICK if tolerance > 1e-3 else THOROUGH)
