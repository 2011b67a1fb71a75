// A PTX module as instructions.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "values.h"

namespace ptx {

enum class Type : std::uint8_t {
  none,
  pred,
  b8,
  b16,
  b32,
  b64,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  bf16,
  f32,
  f64,
  f16x2,
  bf16x2
};

int bytes_of(Type type);
bool is_signed(Type type);
bool is_float(Type type);

enum class Op : std::uint8_t {
  // arithmetic
  mov,
  pack,
  unpack,
  add,
  sub,
  mul,
  mul_wide,
  mul_high,
  mad,
  mad_wide,
  fma,
  neg,
  abs,
  min,
  max,
  div,
  rem,
  cvt,
  and_,
  or_,
  xor_,
  not_,
  shl,
  shr,
  shf,
  lop3,
  bfe,
  bfi,
  prmt,
  popc,
  clz,
  brev,
  setp,
  selp,
  copysign,
  rsqrt,
  sqrt,
  rcp,
  ex2,
  lg2,
  sin,
  cos,
  tanh,
  // memory
  load,
  store,
  ldmatrix,
  stmatrix,
  copy_async,
  copy_commit,
  copy_wait,
  fence_async,
  // products
  mma,
  wgmma,
  wgmma_fence,
  wgmma_commit,
  wgmma_wait,
  // lanes and warps
  shfl,
  vote,
  activemask,
  barrier,
  nothing,
  // control
  branch,
  branch_table,
  call,
  ret,
  exit_,
  trap
};

enum class Space : std::uint8_t { global, shared, param, local };
enum class Compare : std::uint8_t { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };
enum class Rounding : std::uint8_t { nearest, zero, to_int_zero, to_int_nearest, to_int_down, to_int_up };
enum class Special : std::uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  clock
};

struct Operand {
  enum class Kind : std::uint8_t { reg, immediate, special, parameter } kind = Kind::immediate;
  int index = 0;     // of a register, or a Special
  std::string name;  // of a parameter
  Lanes immediate{};
  bool negated = false;  // !p of a predicate
};

struct Instruction {
  Op op = Op::nothing;
  Type type = Type::none, from = Type::none;  // from: the second type that is named
  int guard = -1;                             // the predicate register, or -1
  bool guard_negated = false;
  std::vector<Operand> out, in;
  std::vector<int> groups;               // sizes of the vectors among `in`, of products
  std::int64_t offset = 0, offset2 = 0;  // of the address in in[0], and of a copy's source in in[1]
  int width = 1;                         // elements of a load or store, matrices of ldmatrix
  Space space = Space::global;
  Compare compare = Compare::eq;
  Rounding rounding = Rounding::nearest;
  int flavour = 0;  // boolean of setp, kind of shfl, vote and shf, 1: transposed matrices
  bool propagates_nan = false, saturates = false;
  std::string symbol;              // label, function, parameter or the whole opcode of a product
  std::vector<std::string> names;  // arguments of a call
  std::string result;              // of a call
  std::vector<int> targets;        // of branches
  int function = -1;               // that is called
  bool removed = false;            // a barrier that a test has taken out
  std::string text, place;         // as written, and file:line of the source
};

struct Function {
  std::string name;
  bool is_kernel = false;
  struct Parameter {
    std::string name;
    int offset, size;
  };
  std::vector<Parameter> parameters;
  int parameter_bytes = 0;
  std::vector<std::string> results;
  std::unordered_map<std::string, int> registers, labels;
  std::vector<Instruction> code;
  int index = 0;

  int reg(const std::string& name);
};

struct Program {
  std::vector<std::unique_ptr<Function>> functions;
  std::unordered_map<std::string, int> by_name;
  std::unordered_map<std::string, int> shared;  // offset of each variable in shared memory
  int static_shared = 0;                        // bytes
  Function* kernel = nullptr;
};

// Raises std::runtime_error for what it does not know. `kernel` names the entry; "" is the only or last one.
std::unique_ptr<Program> parse(const std::string& text, const std::string& kernel);

}  // namespace ptx
