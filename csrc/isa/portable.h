// Compiles the rest of a file for any machine, in 16-byte vectors.
#include "isa/warnings.h"
#define FASTDARTS_ISA portable
#define FASTDARTS_VECTOR_BYTES 16
#define FASTDARTS_BF16_DOT 0
#define FASTDARTS_AMX 0
