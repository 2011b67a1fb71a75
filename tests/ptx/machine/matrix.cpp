// Matrix instructions. Layouts of their fragments: PTX ISA, "Warp Level Matrix Instructions" and
// "Asynchronous Warpgroup Level Matrix Instructions".

#include <cstring>
#include <stdexcept>

#include "machine.h"

namespace ptx {
namespace {

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

int number_after(const std::string& text, const std::string& part) {
  return std::atoi(text.c_str() + text.find(part) + part.size());
}

float half(Bits bits, bool brain) { return brain ? BF16::get(bits) : F16::get(bits); }

}  // namespace

// Eight rows of 16 bytes a matrix, whose addresses come from eight lanes; each lane gets two neighbours of a row.
void Machine::load_matrix(Warp& warp, const Instruction& i) {
  Lanes scratch;
  const Lanes addresses = value(warp, i.in[0], scratch);
  std::uint16_t rows[32][8];
  for (int row = 0; row < 8 * i.width; ++row)
    shared_->read((addresses[row] + i.offset) & 0xffffffff, 16, rows[row], access(warp, i), findings_);
  for (int m = 0; m < i.width; ++m) {
    Lanes& out = reg(warp, i.out[m]);
    for (int lane = 0; lane < 32; ++lane) {
      const int row = 8 * m + lane / 4, column = lane % 4 * 2, across = 8 * m + column;
      const std::uint16_t low = i.flavour ? rows[across][lane / 4] : rows[row][column];
      const std::uint16_t high = i.flavour ? rows[across + 1][lane / 4] : rows[row][column + 1];
      out[lane] = Bits(high) << 16 | low;
    }
  }
}

void Machine::store_matrix(Warp& warp, const Instruction& i) {
  Lanes scratch;
  const Lanes& addresses = value(warp, i.in[0], scratch);
  std::uint16_t rows[32][8];
  for (int m = 0; m < i.width; ++m) {
    const Lanes& in = reg(warp, i.in[1 + m]);
    for (int lane = 0; lane < 32; ++lane) {
      const int row = 8 * m + lane / 4, column = lane % 4 * 2, across = 8 * m + column;
      (i.flavour ? rows[across][lane / 4] : rows[row][column]) = std::uint16_t(in[lane]);
      (i.flavour ? rows[across + 1][lane / 4] : rows[row][column + 1]) = std::uint16_t(in[lane] >> 16);
    }
  }
  for (int row = 0; row < 8 * i.width; ++row)
    shared_->write((addresses[row] + i.offset) & 0xffffffff, 16, rows[row], access(warp, i), findings_);
}

void Machine::product(Warp& warp, const Instruction& i) {
  Lanes scratch[16];
  std::vector<const Lanes*> in;
  for (std::size_t k = 0; k < i.in.size(); ++k) in.push_back(&value(warp, i.in[k], scratch[k]));
  const int a_at = 0, b_at = i.groups[0], c_at = b_at + i.groups[1];
  const bool doubles = contains(i.symbol, ".f64.f64");
  if (doubles && contains(i.symbol, "m8n8k4")) {
    double a[8][4], b[4][8];
    for (int lane = 0; lane < 32; ++lane) {
      a[lane / 4][lane % 4] = F64::get((*in[a_at])[lane]);
      b[lane % 4][lane / 4] = F64::get((*in[b_at])[lane]);
    }
    Lanes out[2];
    for (int lane = 0; lane < 32; ++lane)
      for (int q = 0; q < 2; ++q) {
        double sum = F64::get((*in[c_at + q])[lane]);
        for (int k = 0; k < 4; ++k) sum = std::fma(a[lane / 4][k], b[k][lane % 4 * 2 + q], sum);
        out[q][lane] = F64::put(sum);
      }
    for (int q = 0; q < 2; ++q) reg(warp, i.out[q]) = out[q];
    return;
  }
  const bool brain = contains(i.symbol, ".bf16.bf16."), halves = brain || contains(i.symbol, ".f16.f16.");
  const bool deep = contains(i.symbol, "m16n8k16");
  require(halves && (deep || contains(i.symbol, "m16n8k8")) && contains(i.symbol, ".f32."), "an unknown product", i);
  const int depth = deep ? 16 : 8;
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int q = 0; q < i.groups[0] || q < i.groups[1]; ++q)
      for (int h = 0; h < 2; ++h) {
        const int group = lane / 4, k = lane % 4 * 2 + h;
        if (q < i.groups[0]) a[group + (q & 1) * 8][k + (q & 2) * 4] = half((*in[a_at + q])[lane] >> (16 * h), brain);
        if (q < i.groups[1]) b[k + q * 8][group] = half((*in[b_at + q])[lane] >> (16 * h), brain);
      }
  Lanes out[4];
  for (int lane = 0; lane < 32; ++lane)
    for (int q = 0; q < 4; ++q) {
      const int row = lane / 4 + (q & 2) * 4, column = lane % 4 * 2 + (q & 1);
      float sum = 0;
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      out[q][lane] = F32::put(F32::get((*in[c_at + q])[lane]) + sum);
    }
  for (int q = 0; q < 4; ++q) reg(warp, i.out[q]) = out[q];
}

void Machine::fence(Warp& warp) {
  if (warp.fences[0].epoch < epoch_) warp.fences[1] = warp.fences[0];
  warp.fences[0] = {warp.clock, epoch_};
}

// True if a fence of any warp comes after the write and before this moment of the reader.
bool Machine::is_fenced(const Warp& reader, const Cell& cell) const {
  if (cell.write.launch() != launch_index_) return true;
  for (const Warp& warp : warps_)
    for (const Fence& fence : warp.fences) {
      const bool own = Bits(warp.index) == cell.write.warp();
      const bool after = own ? fence.clock > cell.written_at : fence.epoch > cell.write.epoch();
      const bool before = warp.index == reader.index || fence.epoch < epoch_;
      if (fence.clock && after && before) return true;
    }
  return false;
}

// Rows x 16 numbers of 16 bits that a descriptor of shared memory names, as [row * 16 + k]. Rows of 8 x 16 bytes are
// core matrices; within each swizzled stretch bits of the address change places.
//
// Not transposed ("K-major"): a row's 16 numbers lie side by side. Transposed ("MN-major"): numbers of one k do.
std::vector<float> Machine::tile(Warp& warp, const Instruction& i, Bits descriptor, int first, int count,
                                 bool transposed) {
  const Bits start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
  const Bits stride = (descriptor >> 32 & 0x3fff) << 4;
  const int mode = int(descriptor >> 62);  // 0: none, 1: 128 bytes, 2: 64, 3: 32
  const Bits swizzle = mode == 0 ? 16 : Bits(256 >> mode);
  const bool brain = contains(i.symbol, ".bf16.bf16");
  std::vector<float> found(std::size_t(count) * 16);
  for (int r = 0; r < count; ++r)
    for (int k = 0; k < 16; ++k) {
      const Bits row = Bits(first + r);
      Bits address = start;
      if (!transposed) {
        const Bits column = Bits(2 * k);
        address += row / 8 * stride + row % 8 * swizzle;
        address += mode == 0 ? column / 16 * leading + column % 16 : column;
      } else {
        const Bits column = 2 * row;
        address += column / swizzle * (mode == 0 ? stride : leading) + column % swizzle;
        address += Bits(k / 8) * (mode == 0 ? leading : stride) + Bits(k % 8) * swizzle;
      }
      if (mode != 0) address ^= (address >> 7 & (swizzle / 16 - 1)) << 4;
      std::uint16_t bits = 0;
      if (const Cell* cell = shared_->cell(address); cell && !is_fenced(warp, *cell))
        findings_.add("read by a product without fence.proxy.async after the write", i, cell->write.text());
      shared_->read(address, 2, &bits, access(warp, i), findings_);
      found[std::size_t(r) * 16 + k] = half(bits, brain);
    }
  return found;
}

// Reads both factors now, to see whether they change until the product is waited for. Its sums are NaN until then.
void Machine::begin_wide_product(Warp& warp, const Instruction& i) {
  require(contains(i.symbol, "k16") && contains(i.symbol, ".f32.") && i.groups.size() >= 3, "an unknown product", i);
  Lanes scratch;
  WideProduct made;
  made.instruction = &i;
  const auto follows = [&](const std::vector<WideProduct>& before) {  // one whose sums this one goes on with
    for (const WideProduct& other : before)
      if (other.instruction->out[0].index == i.out[0].index) return true;
    return false;
  };
  made.goes_on = follows(warp.open_products);
  for (const auto& group : warp.products) made.goes_on = made.goes_on || follows(group);
  for (const Operand& sum : i.out) made.sums.push_back(reg(warp, sum));
  const int a_count = i.groups[0], n = number_after(i.symbol, "m64n");
  const Operand &b = i.in[a_count], &keep = i.in[a_count + 1];
  if ((value(warp, keep, scratch)[0] & 1) == 0) {
    for (Lanes& sum : made.sums) sum.fill(F32::put(0));
    made.goes_on = false;
  }
  const std::size_t flags = std::size_t(a_count) + 2;  // signs of A and B, then whether they are transposed
  const auto flag = [&](std::size_t k) {
    return flags + k < i.in.size() ? std::int64_t(i.in[flags + k].immediate[0]) : 0;
  };
  require(flag(0) == 1 && flag(1) == 1, "a product with a sign", i);
  const int row = warp.index % 4 * 16;
  if (a_count == 1) {
    made.a = tile(warp, i, value(warp, i.in[0], scratch)[0], row, 16, flag(2) != 0);
  } else {
    made.a.resize(256);
    const bool brain = contains(i.symbol, ".bf16.bf16");
    for (int q = 0; q < 4; ++q) {
      const Lanes& in = value(warp, i.in[q], scratch);
      for (int lane = 0; lane < 32; ++lane)
        for (int h = 0; h < 2; ++h)
          made.a[(lane / 4 + (q & 1) * 8) * 16 + lane % 4 * 2 + h + (q & 2) * 4] = half(in[lane] >> (16 * h), brain);
    }
  }
  made.b = tile(warp, i, value(warp, b, scratch)[0], 0, n, flag(a_count == 1 ? 3 : 2) != 0);
  for (std::size_t k = 0; k < i.out.size(); ++k) reg(warp, i.out[k]).fill(F32::put(NAN));
  warp.open_products.push_back(std::move(made));
}

void Machine::wait_for_products(Warp& warp, std::size_t left) {
  while (warp.products.size() > left) {
    for (WideProduct& product : warp.products.front()) finish(warp, product);
    warp.products.pop_front();
  }
}

void Machine::finish(Warp& warp, WideProduct& product) {
  const Instruction& i = *product.instruction;
  for (std::size_t q = 0; q < i.out.size(); ++q) {
    Lanes& out = reg(warp, i.out[q]);
    const Lanes before = product.goes_on ? out : product.sums[q];
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4 + (q & 2 ? 8 : 0), column = int(q / 4) * 8 + lane % 4 * 2 + int(q & 1);
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += product.a[row * 16 + k] * product.b[column * 16 + k];
      out[lane] = F32::put(F32::get(before[lane]) + sum);
    }
  }
}

}  // namespace ptx
