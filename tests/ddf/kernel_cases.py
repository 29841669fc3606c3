"""Cases for the compiled CPU kernels, a list for each of the ways that they go."""

from ddf.check import Case

# small contiguous maps, whose channels fill the vectors
SMALL_MAPS = [
    Case((4, 40, 7, 7), 3),
    Case((5, 72, 7, 6), 5, head=2, kernel_combine='add'),
    Case((4, 150, 14, 13), 3, stride=2, norm_gain=0.5),
    Case((2, 96, 5, 7), 3, stride=3, dilation=2, head=3, norm_gain=0.5),
    Case((4, 33, 9, 20), 7, dilation=2),
    Case((3, 16, 5, 10), 5, norm_gain=0.5),
    Case((2, 8, 13, 10), 3, dilation=2, kernel_combine='add'),
    Case((4, 64, 3, 1), 3, filters='batch 1'),
    Case((4, 64, 7, 7), 3, kernel_combine='add', filters='expanded'),
    Case((1, 200, 2, 7), 1),
]

# contiguous maps of larger kernels whose rows fill whole vectors, the widest there are
WIDE_ROWS = [
    Case((2, 8, 11, 30), 5),
    Case((2, 12, 9, 48), 7, dilation=2, head=3, kernel_combine='add'),
    Case((3, 4, 15, 14), 7, norm_gain=0.5),
    Case((1, 4, 2, 200), 5, dilation=3, kernel_combine='add', norm_gain=0.5),
    Case((2, 16, 40, 61), 7, dilation=13),
    Case((2, 4, 70, 28), 5, filters='batch 1'),
    Case((2, 4, 17, 32), 7, filters='expanded'),
]

# contiguous maps whose channels are taken in groups of four or eight: planes that begin with a line of the cache or do
# not, that crowd each other out of it, that are cut into tiles, whose taps stand as far apart as the compiler knows or
# more
WHOLE_PLANES = [
    Case((2, 40, 10, 31), 3),
    Case((3, 32, 32, 32), 3, kernel_combine='add'),
    Case((2, 64, 16, 64), 5, head=2),
    Case((1, 32, 40, 17), 7, kernel_combine='add'),
    Case((1, 32, 32, 32), 7),
    Case((2, 32, 56, 56), 3, dilation=2),
    Case((1, 32, 30, 40), 7),
    Case((1, 32, 70, 70), 5, kernel_combine='add', norm_gain=0.5),
    Case((1, 32, 72, 72), 3),
    Case((2, 16, 72, 72), 3, kernel_combine='add'),
    Case((2, 16, 33, 23), 3, dilation=3),
    Case((2, 16, 12, 30), 5, dilation=2),
    Case((9, 64, 30, 64), 3, dilation=2, filters='batch 1'),  # beyond the caches
    Case((5, 64, 28, 64), 5),  # beyond the second ones
    Case((2, 32, 64, 64), 3, filters='expanded'),
]

# channels_last maps of three taps a row, some with more channels than a few columns may have to be taken at once
SLIDING_ROWS = [
    Case((2, 1024, 5, 21), 3, channels_last=True),
    Case((1, 2048, 4, 9), 3, dilation=2, kernel_combine='add', channels_last=True),
    Case((2, 1040, 6, 14), 3, dilation=4, channels_last=True, norm_gain=0.5),
    Case((2, 96, 3, 7), 3, dilation=2, head=2, channels_last=True, filters='batch 1'),
    Case((3, 40, 2, 2), 3, kernel_combine='add', channels_last=True, filters='expanded'),
    Case((2, 56, 9, 1), 3, channels_last=True),
    Case((1, 17, 30, 700), 3, channels_last=True),
]

# contiguous maps at stride 2 that are cut into tiles of rows or of columns, whose last vectors hold one row or two
STRIDED_ROWS = [
    Case((2, 6, 75, 40), 3, stride=2, head=3, kernel_combine='add'),
    Case((1, 5, 13, 301), 3, stride=2, norm_gain=0.5),
    Case((3, 36, 28, 13), 3, stride=2, head=2),
    Case((2, 4, 300, 9), 3, stride=2, kernel_combine='add', norm_gain=0.5),
    Case((3, 4, 30, 35), 3, stride=2, filters='batch 1'),
    Case((3, 4, 31, 64), 3, stride=2, filters='expanded'),
    Case((2, 64, 97, 95), 3, stride=2),  # beyond the caches
]

# tasks enough for several threads
DETERMINISM = [
    Case((3, 10, 23, 31), 3, stride=2, head=2),
    Case((2, 24, 40, 33), 3, channels_last=True),
    Case((4, 6, 30, 17), 5, head=3, kernel_combine='add', norm_gain=0.5),
    Case((5, 8, 19, 40), 3, dilation=2, channels_last=True, norm_gain=0.5, filters='batch 1'),
    Case((4, 40, 21, 16), 3, filters='expanded'),
]

# maps some or most of whose elements no tap touches
UNREACHED = [
    Case((2, 3, 7, 5), 5, dilation=6, stride=3),
    Case((1, 2, 3, 3), 7, channels_last=True),
    Case((2, 4, 9, 9), 3, stride=4, channels_last=True, filters='batch 1'),
    Case((2, 4, 5, 40), 7, dilation=50, head=2, kernel_combine='add', norm_gain=0.5),
    Case((2, 40, 6, 5), 3, stride=5, channels_last=True, norm_gain=0.5, filters='batch 1'),
]
