// Memory that knows who has read and written it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

// Things that are wrong, once for each place in the source, with how often and the first case.
class Findings {
 public:
  void add(const std::string& kind, const Instruction& i, const std::string& detail);
  std::string text() const;  // a line each: kind, place, count, detail, separated by tabs
  void clear() { found_.clear(); }

 private:
  struct Finding {
    std::uint64_t count = 0;
    std::string detail;
  };
  std::map<std::pair<std::string, std::string>, Finding> found_;  // by kind and place
};

// An access: which launch, program (CTA) and warp, and how many barriers that program had passed.
//
// One access happens before another if both are of one warp and in its order, or of one program with a barrier
// between. Nothing orders programs of a launch. Launches are ordered.
class Tag {
 public:
  Tag() = default;
  Tag(Bits launch, Bits program, Bits warp, Bits epoch)
      : bits_((launch << 52) | ((program & 0xffffff) << 28) | ((warp & 63) << 22) | (epoch & 0x3fffff)) {}
  Bits launch() const { return bits_ >> 52; }
  Bits program() const { return (bits_ >> 28) & 0xffffff; }
  Bits warp() const { return (bits_ >> 22) & 63; }
  Bits epoch() const { return bits_ & 0x3fffff; }
  bool same_warp(Tag other) const { return bits_ >> 22 == other.bits_ >> 22; }
  bool same_program(Tag other) const { return bits_ >> 28 == other.bits_ >> 28; }
  bool unordered(Tag other) const {
    if (launch() != other.launch()) return false;
    return !same_program(other) || (warp() != other.warp() && epoch() == other.epoch());
  }
  std::string text() const;

 private:
  Bits bits_ = 0;  // launches count from 1: 0 is no access
};

// Two bytes. Enough readers are kept to see every race of a write with a read: the last of two warps, and one of
// another program than the last.
struct Cell {
  Tag write, read, earlier, elsewhere;
  std::uint32_t written_at = 0;  // the writing warp's clock, for the asynchronous proxy

  // The access that a read or write is unordered with, if any; and remembers the access.
  const Tag* on_read(Tag tag);
  const Tag* on_write(Tag tag, bool same_value);
};

struct Access {
  const Instruction& instruction;
  Tag tag;
  std::uint32_t clock;
};

// One range of addresses. Reads out of it give 0xff bytes, which are NaN; writes out of it are left out.
class Region {
 public:
  Region(std::string name, Bits base, Bits size, std::uint8_t* data, bool watched);
  bool holds(Bits address, Bits size) const { return address >= base_ && address + size <= base_ + size_; }
  void read(Bits address, int size, void* out, const Access& access, Findings& findings);
  void write(Bits address, int size, const void* in, const Access& access, Findings& findings);
  const Cell* cell(Bits address) const;  // nullptr if it is not watched

 private:
  std::string name_;
  Bits base_, size_;
  std::uint8_t* data_;
  std::vector<Cell> cells_;  // empty: not watched
};

// The tensors of a launch.
class Global {
 public:
  void clear() { regions_.clear(); }
  void add(const std::string& name, Bits base, Bits size, bool watched);
  void read(Bits address, int size, void* out, const Access& access, Findings& findings);
  void write(Bits address, int size, const void* in, const Access& access, Findings& findings);

 private:
  Region* find(Bits address, int size);
  std::map<Bits, Region> regions_;  // by base
};

}  // namespace ptx
