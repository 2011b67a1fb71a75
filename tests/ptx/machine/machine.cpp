#include "machine.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace ptx {

constexpr Bits kUnwritten = 0xffffffffffffffff;  // of registers: NaN in every type
constexpr Bits kParameters = Bits{1} << 60;

Machine::Machine(Program& program, Global& global, Findings& findings, const Launch& launch, Bits launch_index)
    : program_(program),
      global_(global),
      findings_(findings),
      launch_(launch),
      launch_index_(launch_index),
      random_(launch.seed) {}

Machine::~Machine() {
  for (Warp& warp : warps_) {
    while (!warp.done()) leave(warp);
    for (auto& of_function : warp.spare)
      for (auto* registers : of_function) delete registers;
  }
}

void Machine::run() {
  const auto& grid = launch_.grid;
  std::vector<Bits> order(grid[0] * grid[1] * grid[2]);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_);
  warps_.resize((launch_.threads[0] * launch_.threads[1] * launch_.threads[2] + 31) / 32);
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    warps_[w].index = int(w);
    warps_[w].spare.resize(program_.functions.size());
  }
  for (Bits index : order) {
    position_ = {index % grid[0], index / grid[0] % grid[1], index / grid[0] / grid[1]};
    run_program(index);
  }
}

void Machine::run_program(Bits index) {
  index_ = index;
  epoch_ = 0;
  const Bits size = launch_.shared_bytes + program_.static_shared;
  shared_bytes_.assign(size, 0xff);
  shared_ = std::make_unique<Region>("shared memory", 0, size, shared_bytes_.data(), true);
  for (Warp& warp : warps_) {
    const Bits threads = launch_.threads[0] * launch_.threads[1] * launch_.threads[2] - 32 * Bits(warp.index);
    warp.alive = threads >= 32 ? kAll : (Mask{1} << threads) - 1;
    warp.clock = 0;
    warp.fences = {};
    enter(warp, program_.kernel, nullptr);
  }
  std::vector<Warp*> order;
  for (Warp& warp : warps_) order.push_back(&warp);
  while (true) {
    std::shuffle(order.begin(), order.end(), random_);
    for (Warp* warp : order) run_until_barrier(*warp);
    const auto waiting = std::count_if(warps_.begin(), warps_.end(), [](const Warp& w) { return w.waits; });
    if (waiting == 0) return;
    for (Warp& warp : warps_) {
      if (!warp.waits && !warp.done()) throw std::runtime_error("a warp is neither done nor at a barrier");
      warp.waits = false;
    }
    ++epoch_;
  }
}

void Machine::run_until_barrier(Warp& warp) {
  while (!warp.done() && step(warp)) {
    if (++executed_ > launch_.most_instructions) throw std::runtime_error("too many instructions: an endless loop?");
  }
}

void Machine::enter(Warp& warp, Function* function, const Instruction* call) {
  auto& spare = warp.spare[function->index];
  if (spare.empty()) spare.push_back(new std::vector<Lanes>(function->registers.size()));
  Frame frame{function, spare.back(), {}, call, {}};
  spare.pop_back();
  Lanes unwritten;
  unwritten.fill(kUnwritten);
  std::fill(frame.registers->begin(), frame.registers->end(), unwritten);
  warp.frames.push_back(std::move(frame));
}

void Machine::leave(Warp& warp) {
  Frame& frame = warp.frames.back();
  warp.spare[frame.function->index].push_back(frame.registers);
  warp.frames.pop_back();
}

// Executes the next instruction of those lanes that are farthest behind: so lanes that have parted meet again where
// their ways do.
bool Machine::step(Warp& warp) {
  Frame& frame = warp.frames.back();
  int at = frame.at[std::countr_zero(warp.alive)];
  Mask active = kAll;
  if (std::any_of(frame.at.begin(), frame.at.end(), [at](int other) { return other != at; }) || warp.alive != kAll) {
    active = 0;
    each_lane(warp.alive, [&](int lane) { at = std::min(at, frame.at[lane]); });
    each_lane(warp.alive, [&](int lane) { active |= Mask(frame.at[lane] == at) << lane; });
  }
  if (at >= int(frame.function->code.size())) throw std::runtime_error("ran past the end of " + frame.function->name);
  const Instruction& i = frame.function->code[at];
  Mask mask = active;
  if (i.guard >= 0) {
    const Lanes& guard = (*frame.registers)[i.guard];
    each_lane(active, [&](int lane) {
      if (((guard[lane] & 1) != 0) == i.guard_negated) mask &= ~(Mask{1} << lane);
    });
  }
  ++warp.clock;
  const auto advance = [&](int next) {
    if (active == kAll)
      frame.at.fill(next);
    else
      each_lane(active, [&](int lane) { frame.at[lane] = next; });
  };
  advance(at + 1);
  if (mask == 0) return true;
  switch (i.op) {
    case Op::nothing:
      break;
    case Op::branch:
      each_lane(mask, [&](int lane) { frame.at[lane] = i.targets[0]; });
      break;
    case Op::branch_table: {
      Lanes scratch;
      const Lanes& chosen = value(warp, i.in[0], scratch);
      each_lane(mask, [&](int lane) { frame.at[lane] = i.targets.at(std::uint32_t(chosen[lane])); });
      break;
    }
    case Op::call:
      call(warp, i, mask);
      break;
    case Op::ret:
    case Op::exit_: {
      if (warp.frames.size() == 1 || i.op == Op::exit_) {
        warp.alive &= ~mask;
        if (warp.alive) break;
        require(warp.open_copies.empty(), "copies that no group holds at the end", i);
        wait_for_copies(warp, 0);
        wait_for_products(warp, 0);
        while (!warp.done()) leave(warp);
        return false;
      }
      require(mask == warp.alive, "a return of some lanes", i);
      const std::string result = frame.call->result;
      Lanes returned{};
      if (!result.empty()) returned = frame.parameters[frame.function->results.at(0)];
      leave(warp);
      if (!result.empty()) warp.frames.back().parameters[result] = returned;
      break;
    }
    case Op::barrier:
      if (i.removed) break;
      require(mask == warp.alive, "a barrier that only some lanes reach", i);
      warp.waits = true;
      return false;
    case Op::trap:
      throw std::runtime_error("trap at " + i.place);
    case Op::load:
      load(warp, i, mask);
      break;
    case Op::store:
      store(warp, i, mask);
      break;
    case Op::copy_async:
      copy(warp, i, mask);
      break;
    case Op::copy_commit:
      warp.copies.push_back(std::move(warp.open_copies));
      warp.open_copies.clear();
      break;
    case Op::copy_wait: {
      Lanes scratch;
      wait_for_copies(warp, value(warp, i.in[0], scratch)[0]);
      break;
    }
    case Op::fence_async:
      fence(warp);
      break;
    case Op::shfl:
      shuffle(warp, i, mask);
      break;
    case Op::vote:
      vote(warp, i, mask);
      break;
    case Op::activemask:
      each_lane(mask, [&](int lane) { reg(warp, i.out[0])[lane] = mask; });
      break;
    case Op::ldmatrix:
    case Op::stmatrix:
    case Op::mma:
    case Op::wgmma:
      require(mask == kAll, "a matrix instruction of some lanes", i);
      if (i.op == Op::ldmatrix)
        load_matrix(warp, i);
      else if (i.op == Op::stmatrix)
        store_matrix(warp, i);
      else if (i.op == Op::mma)
        product(warp, i);
      else
        begin_wide_product(warp, i);
      break;
    case Op::wgmma_fence:
      break;
    case Op::wgmma_commit:
      warp.products.push_back(std::move(warp.open_products));
      warp.open_products.clear();
      break;
    case Op::wgmma_wait: {
      Lanes scratch;
      wait_for_products(warp, value(warp, i.in[0], scratch)[0]);
      break;
    }
    default:
      arithmetic(warp, i, mask);
  }
  return true;
}

void Machine::require(bool holds, const char* what, const Instruction& i) const {
  if (!holds) throw std::runtime_error(std::string(what) + " at " + i.place + ": " + i.text);
}

Lanes& Machine::reg(Warp& warp, const Operand& operand) {
  static thread_local Lanes nowhere;
  return operand.index < 0 ? nowhere : (*warp.frames.back().registers)[operand.index];
}

const Lanes& Machine::value(Warp& warp, const Operand& operand, Lanes& scratch) {
  switch (operand.kind) {
    case Operand::Kind::immediate:
      return operand.immediate;
    case Operand::Kind::reg:
      if (!operand.negated) return reg(warp, operand);
      scratch = reg(warp, operand);
      for (Bits& bits : scratch) bits ^= 1;
      return scratch;
    case Operand::Kind::special:
      special(warp, Special(operand.index), scratch);
      return scratch;
    case Operand::Kind::parameter:
      break;
  }
  throw std::runtime_error("'" + operand.name + "' is no number");
}

void Machine::special(Warp& warp, Special which, Lanes& out) {
  const auto& threads = launch_.threads;
  for (int lane = 0; lane < 32; ++lane) {
    const Bits thread = Bits(32 * warp.index + lane);
    const std::array<Bits, 3> own = {thread % threads[0], thread / threads[0] % threads[1],
                                     thread / threads[0] / threads[1]};
    const int k = int(which);
    if (which == Special::laneid)
      out[lane] = lane;
    else if (which == Special::clock)
      out[lane] = warp.clock;
    else if (k < 3)
      out[lane] = own[k];
    else if (k < 6)
      out[lane] = position_[k - 3];
    else if (k < 9)
      out[lane] = threads[k - 6];
    else
      out[lane] = launch_.grid[k - 9];
  }
}

Access Machine::access(const Warp& warp, const Instruction& i) const {
  return {i, Tag(launch_index_, index_, Bits(warp.index), epoch_), warp.clock};
}

void Machine::read(Warp& warp, const Instruction& i, Bits address, int size, void* out) {
  if (i.space == Space::shared)
    shared_->read(address & 0xffffffff, size, out, access(warp, i), findings_);
  else
    global_.read(address, size, out, access(warp, i), findings_);
}

void Machine::write(Warp& warp, const Instruction& i, Bits address, int size, const void* in) {
  if (i.space == Space::shared)
    shared_->write(address & 0xffffffff, size, in, access(warp, i), findings_);
  else
    global_.write(address, size, in, access(warp, i), findings_);
}

// Parameters are no memory here: an address of one is its number above kParameters.
Bits Machine::parameter_address(const Function& function, const Instruction& i) const {
  for (std::size_t k = 0; k < function.parameters.size(); ++k)
    if (function.parameters[k].name == i.in[0].name) return kParameters + k;
  throw std::runtime_error("the address of a name: " + i.text);
}

void Machine::load(Warp& warp, const Instruction& i, Mask mask) {
  const int size = bytes_of(i.type);
  const auto extended = [&](const std::uint8_t* bytes) {
    Bits bits = 0;
    std::memcpy(&bits, bytes, size);
    if (is_signed(i.type) && size < 8 && (bits >> (8 * size - 1) & 1)) bits |= ~Bits{0} << (8 * size);
    return bits;
  };
  if (i.space == Space::param) {
    Frame& frame = warp.frames.back();
    Lanes scratch;
    const bool by_address = i.in[0].kind != Operand::Kind::parameter;
    const std::string& name =
        by_address
            ? frame.function->parameters.at(value(warp, i.in[0], scratch)[std::countr_zero(mask)] - kParameters).name
            : i.in[0].name;
    if (frame.function->is_kernel && !frame.parameters.count(name)) {
      for (const auto& parameter : frame.function->parameters)
        if (parameter.name == name) {
          for (int k = 0; k < i.width; ++k) {
            const Bits from = Bits(parameter.offset + i.offset + k * size);
            if (from + size > launch_.parameters.size()) throw std::runtime_error("no parameter " + i.text);
            const Bits bits = extended(launch_.parameters.data() + from);
            each_lane(mask, [&](int lane) { reg(warp, i.out[k])[lane] = bits; });
          }
          return;
        }
      throw std::runtime_error("no parameter " + name);
    }
    const Lanes& given = frame.parameters.at(name);
    each_lane(mask, [&](int lane) {
      reg(warp, i.out[0])[lane] = extended(reinterpret_cast<const std::uint8_t*>(&given[lane]));
    });
    return;
  }
  require(i.space != Space::local, "local memory is unknown", i);
  Lanes scratch;
  const Lanes addresses = value(warp, i.in[0], scratch);  // a copy: the register may be loaded into
  std::uint8_t bytes[64];
  each_lane(mask, [&](int lane) {
    read(warp, i, addresses[lane] + i.offset, size * i.width, bytes);
    for (int k = 0; k < i.width; ++k) reg(warp, i.out[k])[lane] = extended(bytes + k * size);
  });
}

void Machine::store(Warp& warp, const Instruction& i, Mask mask) {
  const int size = bytes_of(i.type);
  Lanes scratch, more[8];
  const Lanes* values[8];
  for (int k = 0; k < i.width; ++k) values[k] = &value(warp, i.in[1 + k], more[k]);
  if (i.space == Space::param) {
    Lanes& to = warp.frames.back().parameters[i.in[0].name];
    each_lane(mask, [&](int lane) { to[lane] = (*values[0])[lane]; });
    return;
  }
  require(i.space != Space::local, "local memory is unknown", i);
  const Lanes& addresses = value(warp, i.in[0], scratch);
  std::uint8_t bytes[64];
  each_lane(mask, [&](int lane) {
    for (int k = 0; k < i.width; ++k) std::memcpy(bytes + k * size, &(*values[k])[lane], size);
    write(warp, i, addresses[lane] + i.offset, size * i.width, bytes);
  });
}

void Machine::copy(Warp& warp, const Instruction& i, Mask mask) {
  Lanes scratch[4];
  const Lanes &to = value(warp, i.in[0], scratch[0]), &from = value(warp, i.in[1], scratch[1]);
  const Lanes& size = value(warp, i.in[2], scratch[2]);
  const Lanes& given = i.in.size() > 3 ? value(warp, i.in[3], scratch[3]) : size;  // the rest becomes zero
  each_lane(mask, [&](int lane) {
    Copy copy{&i,
              (to[lane] + i.offset) & 0xffffffff,
              from[lane] + i.offset2,
              int(size[lane]),
              int(std::uint32_t(given[lane])),
              {}};
    if (copy.read > 0) global_.read(copy.from, copy.read, copy.data.data(), access(warp, i), findings_);
    warp.open_copies.push_back(copy);
  });
}

void Machine::wait_for_copies(Warp& warp, std::size_t left) {
  while (warp.copies.size() > left) {
    for (const Copy& copy : warp.copies.front()) {
      std::array<std::uint8_t, 16> now{};
      if (copy.read > 0) global_.read(copy.from, copy.read, now.data(), access(warp, *copy.instruction), findings_);
      if (now != copy.data) findings_.add("source of a copy changed before it landed", *copy.instruction, "");
      shared_->write(copy.to, copy.size, copy.data.data(), access(warp, *copy.instruction), findings_);
    }
    warp.copies.pop_front();
  }
}

void Machine::shuffle(Warp& warp, const Instruction& i, Mask mask) {
  Lanes scratch[3], out;
  const Lanes &from = value(warp, i.in[0], scratch[0]), &by = value(warp, i.in[1], scratch[1]);
  const Lanes& bounds = value(warp, i.in[2], scratch[2]);
  Mask in_range = 0;
  each_lane(mask, [&](int lane) {
    const int segment = int(bounds[lane] >> 8) & 31, clamp = int(bounds[lane]) & 31, step = int(by[lane]) & 31;
    const int lowest = lane & segment, highest = lowest | (clamp & ~segment);
    int source = lane;
    bool valid = true;
    switch (i.flavour) {
      case 0:
        valid = (source = lane ^ step) <= highest;
        break;
      case 1:
        valid = (source = lowest | (step & ~segment)) <= highest;
        break;
      case 2:
        valid = (source = lane - step) >= highest;
        break;
      default:
        valid = (source = lane + step) <= highest;
    }
    if (!valid) source = lane;
    if (!(mask >> source & 1)) findings_.add("shuffle from an inactive lane", i, "lane " + std::to_string(source));
    out[lane] = std::uint32_t(from[source]);
    in_range |= Mask(valid) << lane;
  });
  each_lane(mask, [&](int lane) { reg(warp, i.out[0])[lane] = out[lane]; });
  if (i.out.size() > 1) each_lane(mask, [&](int lane) { reg(warp, i.out[1])[lane] = in_range >> lane & 1; });
}

void Machine::vote(Warp& warp, const Instruction& i, Mask mask) {
  Lanes scratch;
  const Lanes& asked = value(warp, i.in[0], scratch);
  Mask yes = 0;
  each_lane(mask, [&](int lane) { yes |= Mask(asked[lane] & 1) << lane; });
  const Bits answers[] = {yes == mask, yes != 0, yes, yes == mask || yes == 0};
  each_lane(mask, [&](int lane) { reg(warp, i.out[0])[lane] = answers[i.flavour]; });
}

void Machine::call(Warp& warp, const Instruction& i, Mask mask) {
  require(mask == warp.alive, "a call of some lanes", i);
  Function* function = program_.functions[i.function].get();
  Frame& caller = warp.frames.back();
  std::unordered_map<std::string, Lanes> given;
  for (std::size_t k = 0; k < i.names.size(); ++k)
    given[function->parameters.at(k).name] = caller.parameters.at(i.names[k]);
  enter(warp, function, &i);
  warp.frames.back().parameters = std::move(given);
}

}  // namespace ptx
