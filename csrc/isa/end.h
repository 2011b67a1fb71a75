// Ends what a header of isa/ with a target of its own began.
#if defined(__clang__)
#pragma clang attribute pop
#endif
