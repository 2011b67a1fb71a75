// One program (CTA) after another, warp by warp in random order between barriers.
#pragma once

#include <deque>
#include <random>
#include <unordered_map>

#include "memory.h"

namespace ptx {

struct Frame {
  Function* function;
  std::vector<Lanes>* registers;
  std::array<int, 32> at;                             // next instruction of each lane
  const Instruction* call;                            // that led here
  std::unordered_map<std::string, Lanes> parameters;  // its own and those of calls that it prepares
};

// A copy to shared memory that lands when it is waited for, no earlier.
struct Copy {
  const Instruction* instruction;
  Bits to, from;
  int size, read;
  std::array<std::uint8_t, 16> data;
};

// A product of a warp group of which this warp makes its rows, finished when it is waited for.
struct WideProduct {
  const Instruction* instruction;
  std::vector<float> a, b;  // factors as they were when it began
  std::vector<Lanes> sums;
  bool goes_on = false;  // with the sums of a product before it that has not been waited for
};

// A fence.proxy.async: what happens before it is seen by products that happen after it.
struct Fence {
  std::uint32_t clock = 0;  // of its warp; 0: none
  Bits epoch = 0;           // barriers before it
};

struct Warp {
  int index = 0;
  std::deque<Frame> frames;
  Mask alive = kAll;
  bool waits = false;
  std::uint32_t clock = 0;      // instructions so far
  std::array<Fence, 2> fences;  // the last one, and the last one before the last barrier that it had passed then
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copies;
  std::vector<WideProduct> open_products;
  std::deque<std::vector<WideProduct>> products;
  std::vector<std::vector<std::vector<Lanes>*>> spare;  // registers of returned calls, by function

  bool done() const { return frames.empty(); }
};

class Machine {
 public:
  struct Launch {
    std::array<Bits, 3> grid, threads;
    Bits shared_bytes;
    std::vector<std::uint8_t> parameters;
    Bits seed;
    Bits most_instructions;
  };

  Machine(Program& program, Global& global, Findings& findings, const Launch& launch, Bits launch_index);
  ~Machine();
  void run();
  Bits executed() const { return executed_; }

 private:
  void run_program(Bits index);
  void run_until_barrier(Warp& warp);
  bool step(Warp& warp);  // false: the warp waits or has ended
  void enter(Warp& warp, Function* function, const Instruction* call);
  void leave(Warp& warp);

  // Operands and results.
  const Lanes& value(Warp& warp, const Operand& operand, Lanes& scratch);
  Lanes& reg(Warp& warp, const Operand& operand);
  void special(Warp& warp, Special which, Lanes& out);

  // Kinds of instructions; each leaves the next instruction to step().
  void arithmetic(Warp& warp, const Instruction& i, Mask mask);
  void load(Warp& warp, const Instruction& i, Mask mask);
  void store(Warp& warp, const Instruction& i, Mask mask);
  void copy(Warp& warp, const Instruction& i, Mask mask);
  void wait_for_copies(Warp& warp, std::size_t left);
  void shuffle(Warp& warp, const Instruction& i, Mask mask);
  void vote(Warp& warp, const Instruction& i, Mask mask);
  void load_matrix(Warp& warp, const Instruction& i);
  void store_matrix(Warp& warp, const Instruction& i);
  void product(Warp& warp, const Instruction& i);
  void begin_wide_product(Warp& warp, const Instruction& i);
  void wait_for_products(Warp& warp, std::size_t left);
  void finish(Warp& warp, WideProduct& product);
  void fence(Warp& warp);
  bool is_fenced(const Warp& reader, const Cell& cell) const;
  std::vector<float> tile(Warp& warp, const Instruction& i, Bits descriptor, int first, int count, bool transposed);
  void call(Warp& warp, const Instruction& i, Mask mask);
  Bits parameter_address(const Function& function, const Instruction& i) const;

  Access access(const Warp& warp, const Instruction& i) const;
  void read(Warp& warp, const Instruction& i, Bits address, int size, void* out);
  void write(Warp& warp, const Instruction& i, Bits address, int size, const void* in);
  void require(bool holds, const char* what, const Instruction& i) const;

  Program& program_;
  Global& global_;
  Findings& findings_;
  const Launch& launch_;
  Bits launch_index_;
  std::mt19937_64 random_;
  std::vector<Warp> warps_;
  std::vector<std::uint8_t> shared_bytes_;
  std::unique_ptr<Region> shared_;
  std::array<Bits, 3> position_{};
  Bits index_ = 0, epoch_ = 0, executed_ = 0;
};

}  // namespace ptx
