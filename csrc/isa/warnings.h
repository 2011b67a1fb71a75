// Turns off warnings that are false for all kernels.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false: its own intrinsics, and Ahead's ranges
#pragma GCC diagnostic ignored "-Wpsabi"                // no vector goes from one file to another
#endif
