// What Python calls. A program is loaded once and launched many times; findings collect until they are read.

#include <cstring>
#include <stdexcept>

#include "machine.h"

namespace {

struct Session {
  ptx::Global memory;
  ptx::Findings findings;
  ptx::Bits launches = 0;
  std::string text;  // the last error or report, for Python to copy
};

Session session;

template <class F>
int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    session.text = error.what();
    return 1;
  }
}

}  // namespace

extern "C" {

const char* ptx_text() { return session.text.c_str(); }

void* ptx_load(const char* text, const char* kernel) {
  ptx::Program* program = nullptr;
  guarded([&] { program = ptx::parse(text, kernel).release(); });
  return program;
}

void ptx_free(void* program) { delete static_cast<ptx::Program*>(program); }

// Offsets and sizes of the kernel's parameters, two numbers each; returns how many there are.
int ptx_parameters(void* program, int* offsets, int most) {
  const auto& parameters = static_cast<ptx::Program*>(program)->kernel->parameters;
  for (int k = 0; k < int(parameters.size()) && k < most; ++k) {
    offsets[2 * k] = parameters[k].offset;
    offsets[2 * k + 1] = parameters[k].size;
  }
  return int(parameters.size());
}

// Places (file:line) of all barriers, a line each, as often as there are barriers.
void ptx_barriers(void* program) {
  session.text.clear();
  for (const auto& function : static_cast<ptx::Program*>(program)->functions)
    for (const auto& i : function->code)
      if (i.op == ptx::Op::barrier) session.text += i.place + "\n";
}

// Takes out the barriers of one place, and puts back all others.
void ptx_remove_barriers(void* program, const char* place) {
  for (auto& function : static_cast<ptx::Program*>(program)->functions)
    for (auto& i : function->code)
      if (i.op == ptx::Op::barrier) i.removed = i.place == place;
}

void ptx_forget() { session.memory.clear(); }

void ptx_allow(const char* name, std::uint64_t base, std::uint64_t size, int watched) {
  session.memory.add(name, base, size, watched != 0);
}

// grid_and_threads: six numbers. Returns 0, or 1 with an error in ptx_text().
int ptx_launch(void* program, const std::uint64_t* grid_and_threads, std::uint64_t shared,
               const std::uint8_t* parameters, int parameter_bytes, std::uint64_t seed, std::uint64_t most,
               std::uint64_t* executed) {
  return guarded([&] {
    const auto* g = grid_and_threads;
    session.launches = session.launches % 4095 + 1;
    const ptx::Machine::Launch launch{
        {g[0], g[1], g[2]}, {g[3], g[4], g[5]}, shared, {parameters, parameters + parameter_bytes}, seed, most};
    ptx::Machine machine(*static_cast<ptx::Program*>(program), session.memory, session.findings, launch,
                         session.launches);
    machine.run();
    *executed = machine.executed();
  });
}

void ptx_report() {
  session.text = session.findings.text();
  session.findings.clear();
}
}
