#include "memory.h"

#include <cstring>

namespace ptx {
namespace {

std::string at(Bits address, int size) { return std::to_string(size) + " bytes at " + std::to_string(address); }

bool aligned(Bits address, int size, const Access& access, Findings& findings) {
  if (address % Bits(size) == 0) return true;
  findings.add("misaligned access", access.instruction, at(address, size));
  return false;
}

}  // namespace

void Findings::add(const std::string& kind, const Instruction& i, const std::string& detail) {
  Finding& finding = found_[{kind, i.place}];
  if (finding.count++ == 0) finding.detail = i.text + "; " + detail;
}

std::string Findings::text() const {
  std::string text;
  for (const auto& [key, finding] : found_)
    text += key.first + "\t" + key.second + "\t" + std::to_string(finding.count) + "\t" + finding.detail + "\n";
  return text;
}

std::string Tag::text() const {
  return "program " + std::to_string(program()) + ", warp " + std::to_string(warp()) + ", after barrier " +
         std::to_string(epoch());
}

const Tag* Cell::on_read(Tag tag) {
  if (!read.same_warp(tag)) {
    if (read.launch() != tag.launch()) {
      earlier = elsewhere = Tag();
    } else {
      if (!read.same_program(tag)) elsewhere = read;
      earlier = read;
    }
  }
  read = tag;
  return write.unordered(tag) ? &write : nullptr;
}

const Tag* Cell::on_write(Tag tag, bool same_value) {
  static thread_local Tag other;  // the write is replaced before it is reported
  const Tag* race = nullptr;
  for (const Tag* reader : {&read, &earlier, &elsewhere})
    if (reader->unordered(tag)) race = reader;
  if (!same_value && write.unordered(tag)) {
    other = write;
    race = &other;
  }
  write = tag;
  return race;
}

Region::Region(std::string name, Bits base, Bits size, std::uint8_t* data, bool watched)
    : name_(std::move(name)), base_(base), size_(size), data_(data), cells_(watched ? size / 2 + 1 : 0) {}

void Region::read(Bits address, int size, void* out, const Access& access, Findings& findings) {
  if (!holds(address, size)) {
    std::memset(out, 0xff, size);
    findings.add("read out of bounds", access.instruction, name_ + ", " + at(address, size));
    return;
  }
  aligned(address, size, access, findings);
  std::memcpy(out, data_ + (address - base_), size);
  if (cells_.empty()) return;
  for (Bits cell = (address - base_) / 2; cell <= (address - base_ + size - 1) / 2; ++cell)
    if (const Tag* other = cells_[cell].on_read(access.tag))
      findings.add("read and write in any order", access.instruction,
                   name_ + ": read by " + access.tag.text() + ", written by " + other->text());
}

void Region::write(Bits address, int size, const void* in, const Access& access, Findings& findings) {
  if (!holds(address, size)) {
    findings.add("write out of bounds", access.instruction, name_ + ", " + at(address, size));
    return;
  }
  aligned(address, size, access, findings);
  std::uint8_t* to = data_ + (address - base_);
  const bool same = std::memcmp(to, in, size) == 0;
  std::memcpy(to, in, size);
  if (cells_.empty()) return;
  for (Bits cell = (address - base_) / 2; cell <= (address - base_ + size - 1) / 2; ++cell) {
    cells_[cell].written_at = access.clock;
    if (const Tag* other = cells_[cell].on_write(access.tag, same))
      findings.add("write and another access in any order", access.instruction,
                   name_ + ": written by " + access.tag.text() + ", accessed by " + other->text());
  }
}

const Cell* Region::cell(Bits address) const {
  return cells_.empty() || !holds(address, 1) ? nullptr : &cells_[(address - base_) / 2];
}

void Global::add(const std::string& name, Bits base, Bits size, bool watched) {
  regions_.emplace(base, Region(name, base, size, reinterpret_cast<std::uint8_t*>(base), watched));
}

Region* Global::find(Bits address, int size) {
  const auto next = regions_.upper_bound(address);
  if (next == regions_.begin()) return nullptr;
  Region& region = std::prev(next)->second;
  return region.holds(address, size) ? &region : nullptr;
}

void Global::read(Bits address, int size, void* out, const Access& access, Findings& findings) {
  if (Region* region = find(address, size)) return region->read(address, size, out, access, findings);
  std::memset(out, 0xff, size);
  findings.add("read out of bounds", access.instruction, "global memory, " + at(address, size));
}

void Global::write(Bits address, int size, const void* in, const Access& access, Findings& findings) {
  if (Region* region = find(address, size)) return region->write(address, size, in, access, findings);
  findings.add("write out of bounds", access.instruction, "global memory, " + at(address, size));
}

}  // namespace ptx
