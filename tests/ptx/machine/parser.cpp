// Text of PTX to instructions.

#include <cctype>
#include <cstdlib>
#include <map>
#include <sstream>
#include <stdexcept>

#include "program.h"

namespace ptx {
namespace {

using Strings = std::vector<std::string>;

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

bool starts(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

// Parts between separators that are in no brackets.
Strings split(const std::string& text, char separator) {
  Strings found;
  std::string part;
  int depth = 0;
  for (char c : text) {
    depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
    if (c == separator && depth == 0) {
      found.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) found.push_back(trimmed(part));
  return found;
}

template <class T>
T known(const std::map<std::string, T>& names, const std::string& name, const std::string& text) {
  const auto found = names.find(name);
  if (found == names.end()) throw std::runtime_error("unknown '" + name + "' in: " + text);
  return found->second;
}

const std::map<std::string, Type> kTypes = {
    {"pred", Type::pred}, {"b8", Type::b8},   {"b16", Type::b16},     {"b32", Type::b32},      {"b64", Type::b64},
    {"u8", Type::u8},     {"u16", Type::u16}, {"u32", Type::u32},     {"u64", Type::u64},      {"s8", Type::s8},
    {"s16", Type::s16},   {"s32", Type::s32}, {"s64", Type::s64},     {"f16", Type::f16},      {"bf16", Type::bf16},
    {"f32", Type::f32},   {"f64", Type::f64}, {"f16x2", Type::f16x2}, {"bf16x2", Type::bf16x2}};

const std::map<std::string, Op> kOps = {{"mov", Op::mov},           {"add", Op::add},
                                        {"sub", Op::sub},           {"mul", Op::mul},
                                        {"mad", Op::mad},           {"fma", Op::fma},
                                        {"neg", Op::neg},           {"abs", Op::abs},
                                        {"min", Op::min},           {"max", Op::max},
                                        {"div", Op::div},           {"rem", Op::rem},
                                        {"cvt", Op::cvt},           {"cvta", Op::mov},
                                        {"and", Op::and_},          {"or", Op::or_},
                                        {"xor", Op::xor_},          {"not", Op::not_},
                                        {"shl", Op::shl},           {"shr", Op::shr},
                                        {"shf", Op::shf},           {"lop3", Op::lop3},
                                        {"bfe", Op::bfe},           {"bfi", Op::bfi},
                                        {"prmt", Op::prmt},         {"popc", Op::popc},
                                        {"clz", Op::clz},           {"brev", Op::brev},
                                        {"setp", Op::setp},         {"selp", Op::selp},
                                        {"rsqrt", Op::rsqrt},       {"sqrt", Op::sqrt},
                                        {"rcp", Op::rcp},           {"ex2", Op::ex2},
                                        {"lg2", Op::lg2},           {"sin", Op::sin},
                                        {"cos", Op::cos},           {"tanh", Op::tanh},
                                        {"ld", Op::load},           {"ldu", Op::load},
                                        {"st", Op::store},          {"mma", Op::mma},
                                        {"shfl", Op::shfl},         {"vote", Op::vote},
                                        {"bra", Op::branch},        {"brx", Op::branch_table},
                                        {"call", Op::call},         {"ret", Op::ret},
                                        {"exit", Op::exit_},        {"trap", Op::trap},
                                        {"bar", Op::barrier},       {"barrier", Op::barrier},
                                        {"ldmatrix", Op::ldmatrix}, {"stmatrix", Op::stmatrix},
                                        {"cp", Op::copy_async},     {"wgmma", Op::wgmma},
                                        {"fence", Op::nothing},     {"membar", Op::nothing},
                                        {"copysign", Op::copysign}, {"activemask", Op::activemask},
                                        {"prefetch", Op::nothing},  {"griddepcontrol", Op::nothing}};

const std::map<std::string, Compare> kCompares = {
    {"eq", Compare::eq},   {"ne", Compare::ne},   {"lt", Compare::lt},   {"le", Compare::le},   {"gt", Compare::gt},
    {"ge", Compare::ge},   {"equ", Compare::equ}, {"neu", Compare::neu}, {"ltu", Compare::ltu}, {"leu", Compare::leu},
    {"gtu", Compare::gtu}, {"geu", Compare::geu}, {"num", Compare::num}, {"nan", Compare::nan}, {"lo", Compare::lt},
    {"ls", Compare::le},   {"hi", Compare::gt},   {"hs", Compare::ge}};

const std::map<std::string, Special> kSpecials = {
    {"%tid.x", Special::tid_x},       {"%tid.y", Special::tid_y},       {"%tid.z", Special::tid_z},
    {"%ctaid.x", Special::ctaid_x},   {"%ctaid.y", Special::ctaid_y},   {"%ctaid.z", Special::ctaid_z},
    {"%ntid.x", Special::ntid_x},     {"%ntid.y", Special::ntid_y},     {"%ntid.z", Special::ntid_z},
    {"%nctaid.x", Special::nctaid_x}, {"%nctaid.y", Special::nctaid_y}, {"%nctaid.z", Special::nctaid_z},
    {"%laneid", Special::laneid},     {"%clock", Special::clock}};

class Parser {
 public:
  explicit Parser(Program& program) : program_(program) {}

  void run(const std::string& text) {
    std::istringstream lines(text);
    std::string line, pending;
    for (std::istringstream files(text); std::getline(files, line);)  // they may come last
      if (starts(trimmed(line), ".file")) file(trimmed(line));
    while (std::getline(lines, line)) {
      if (const auto comment = line.find("//"); comment != std::string::npos) line.resize(comment);
      line = trimmed(line);
      if (starts(line, ".section")) break;  // what debuggers read
      if (starts(line, ".loc")) {
        location(line);
      } else if (!starts(line, ".file") && !starts(line, ".version") && !starts(line, ".target") &&
                 !starts(line, ".address_size")) {
        pending += line + " ";
        consume(pending);
      }
    }
    for (auto& function : program_.functions)
      for (auto& instruction : function->code)
        if (instruction.op == Op::call) instruction.function = at(program_.by_name, instruction.symbol);
  }

 private:
  static int at(const std::unordered_map<std::string, int>& names, const std::string& name) {
    const auto found = names.find(name);
    if (found == names.end()) throw std::runtime_error("nothing is named '" + name + "'");
    return found->second;
  }

  void location(const std::string& line) {  // .loc file line column, function_name name, inlined_at file line column
    place_ = place(line.substr(4));
    const auto caller = line.find("inlined_at ");
    if (caller != std::string::npos) place_ += " from " + place(line.substr(caller + 11));
  }

  std::string place(const std::string& numbers) {
    std::istringstream words(numbers);
    int index = 0, row = 0;
    words >> index >> row;
    return files_[index] + ":" + std::to_string(row);
  }

  void file(const std::string& line) {  // .file index "path"
    const auto first = line.find('"'), last = line.rfind('"');
    if (first == std::string::npos) return;
    const std::string path = line.substr(first + 1, last - first - 1);
    files_[std::atoi(line.c_str() + 5)] = path.substr(path.rfind('/') + 1);
  }

  // Handles whole statements at the beginning of `pending` and removes them.
  void consume(std::string& pending) {
    while (true) {
      pending = trimmed(pending);
      if (pending.empty()) return;
      if (function_ && (pending[0] == '{' || pending[0] == '}')) {
        depth_ += pending[0] == '{' ? 1 : -1;
        if (depth_ == 0) end_function();
        pending.erase(0, 1);
        continue;
      }
      if (function_ && label(pending)) continue;
      const bool header = !function_ && is_header(pending);
      const auto end = header ? pending.find_first_of(";{") : pending.find(';');
      if (end == std::string::npos) {
        pending += " ";
        return;
      }
      const std::string statement = trimmed(pending.substr(0, end));
      const bool has_body = pending[end] == '{';
      pending.erase(0, end + 1);
      if (header && has_body) {
        begin_function(statement);
      } else if (!header) {
        this->statement(statement);
      }
    }
  }

  static bool is_header(const std::string& text) {
    return text.find(".func") != std::string::npos || text.find(".entry") != std::string::npos;
  }

  bool label(std::string& pending) {
    const auto colon = pending.find(':');
    const auto name_end = pending.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$");
    if (colon == std::string::npos || name_end != colon || pending.compare(colon, 2, "::") == 0) return false;
    label_ = pending.substr(0, colon);
    function_->labels[label_] = int(function_->code.size());
    pending.erase(0, colon + 1);
    return true;
  }

  void statement(const std::string& text) {
    if (starts(text, ".branchtargets")) {
      tables_[label_] = split(text.substr(14), ',');
    } else if (text.find(".shared") != std::string::npos && text[0] == '.') {
      shared_variable(text);
    } else if (text[0] == '.') {
      if (function_ && starts(text, ".reg")) declare(text);
    } else if (function_) {
      instruction(text);
    }
  }

  // A register without % is known by its declaration alone.
  void declare(const std::string& text) {
    const auto names = text.find_first_of(" \t", text.find('.', 4));
    for (const std::string& name : split(text.substr(names), ','))
      if (name.find('<') == std::string::npos) function_->reg(name);
  }

  void shared_variable(const std::string& text) {  // .shared .align 8 .b8 name[64]
    const auto name_at = text.find_last_of(" \t") + 1;
    const std::string declared = text.substr(name_at);
    const auto bracket = declared.find('[');
    const int count = bracket == std::string::npos ? 1 : std::atoi(declared.c_str() + bracket + 1);
    int align = 16, size = 0;
    std::istringstream words(text.substr(0, name_at));
    for (std::string word; words >> word;) {
      if (word == ".align") words >> align;
      if (word[0] == '.' && kTypes.count(word.substr(1))) size = bytes_of(kTypes.at(word.substr(1)));
    }
    int& end = program_.static_shared;
    end = (end + align - 1) / align * align;
    program_.shared[declared.substr(0, bracket)] = end;
    end += size * count;
  }

  void begin_function(const std::string& header) {
    program_.functions.push_back(std::make_unique<Function>());
    function_ = program_.functions.back().get();
    function_->index = int(program_.functions.size()) - 1;
    function_->is_kernel = header.find(".entry") != std::string::npos;
    const char* keyword = function_->is_kernel ? ".entry" : ".func";
    std::string rest = trimmed(header.substr(header.find(keyword) + std::string(keyword).size()));
    if (rest[0] == '(') {
      for (const auto& result : split(rest.substr(1, rest.find(')') - 1), ','))
        function_->results.push_back(result.substr(result.find_last_of(" \t") + 1));
      rest = trimmed(rest.substr(rest.find(')') + 1));
    }
    const auto open = rest.find('(');
    function_->name = trimmed(rest.substr(0, open));
    if (open != std::string::npos) parameters(rest.substr(open + 1, rest.find(')') - open - 1));
    program_.by_name[function_->name] = function_->index;
    tables_.clear();
    depth_ = 1;
  }

  void parameters(const std::string& list) {  // .param .u64 .ptr .global .align 16 name, .param .align 8 .b8 name[56]
    int& end = function_->parameter_bytes;
    for (const std::string& parameter : split(list, ',')) {
      int size = 0, align = 0;
      std::string name;
      std::istringstream words(parameter);
      bool pointer = false;
      for (std::string word; words >> word; name = word) {
        pointer = pointer || word == ".ptr";
        if (word == ".align") words >> word, align = pointer ? align : std::atoi(word.c_str());
        if (word[0] == '.' && kTypes.count(word.substr(1))) size = bytes_of(kTypes.at(word.substr(1)));
      }
      align = align ? align : size;
      if (const auto bracket = name.find('['); bracket != std::string::npos) {
        size *= std::atoi(name.c_str() + bracket + 1);
        name.resize(bracket);
      }
      end = (end + align - 1) / align * align;
      function_->parameters.push_back({name, end, size});
      end += size;
    }
  }

  void end_function() {
    for (auto& i : function_->code) {
      if (i.op == Op::branch) i.targets = {at(function_->labels, i.symbol)};
      if (i.op == Op::branch_table)
        for (const auto& label : tables_[i.symbol]) i.targets.push_back(at(function_->labels, label));
    }
    function_ = nullptr;
  }

  Operand operand(std::string text) {
    Operand found;
    if (text[0] == '!') {
      found.negated = true;
      text.erase(0, 1);
    }
    if (text[0] == '%' || function_->registers.count(text)) {
      if (const auto special = kSpecials.find(text); special != kSpecials.end()) {
        found.kind = Operand::Kind::special;
        found.index = int(special->second);
      } else {
        found.kind = Operand::Kind::reg;
        found.index = function_->reg(text);
      }
      return found;
    }
    if (std::isdigit(text[0]) || text[0] == '-') {
      found.immediate.fill(number(text));
      return found;
    }
    if (const auto variable = program_.shared.find(text); variable != program_.shared.end()) {
      found.immediate.fill(Bits(variable->second));
      return found;
    }
    if (text == "_") {
      found.index = -1;
      found.kind = Operand::Kind::reg;
      return found;
    }
    found.kind = Operand::Kind::parameter;
    found.name = text;
    return found;
  }

  static Bits number(const std::string& text) {
    if (text.size() > 2 && (text[1] == 'f' || text[1] == 'F' || text[1] == 'd' || text[1] == 'D'))
      return std::strtoull(text.c_str() + 2, nullptr, 16);  // a float's bits
    return text[0] == '-' ? Bits(std::strtoll(text.c_str(), nullptr, 0)) : std::strtoull(text.c_str(), nullptr, 0);
  }

  std::vector<Operand> operands(const std::string& text) {
    std::vector<Operand> found;
    const bool vector = text[0] == '{';
    for (const auto& element : split(vector ? text.substr(1, text.size() - 2) : text, vector ? ',' : '\0'))
      found.push_back(operand(element));
    return found;
  }

  // Adds an address to the inputs and returns its offset.
  std::int64_t address(const std::string& text, Instruction& i) {
    std::string base = trimmed(text.substr(1, text.size() - 2));
    std::int64_t offset = 0;
    if (const auto plus = base.find('+'); plus != std::string::npos) {
      offset = std::strtoll(trimmed(base.substr(plus + 1)).c_str(), nullptr, 0);
      base = trimmed(base.substr(0, plus));
    }
    i.in.push_back(operand(base));
    return offset;
  }

  void instruction(const std::string& statement) {
    Instruction i;
    i.text = statement;
    i.place = place_;
    std::string text = statement;
    if (text[0] == '@') {
      const auto end = text.find_first_of(" \t");
      i.guard_negated = text[1] == '!';
      i.guard = function_->reg(text.substr(1 + i.guard_negated, end - 1 - i.guard_negated));
      text = trimmed(text.substr(end));
    }
    const auto end = text.find_first_of(" \t");
    const std::string opcode = text.substr(0, end);
    const Strings arguments = end == std::string::npos ? Strings{} : split(text.substr(end), ',');
    Strings parts = split_opcode(opcode);
    i.op = known(kOps, parts[0], statement);
    for (std::size_t k = 1; k < parts.size(); ++k)
      if (const auto type = kTypes.find(parts[k]); type != kTypes.end())
        (i.type == Type::none ? i.type : i.from) = type->second;
    const auto has = [&](const char* modifier) {
      for (const auto& part : parts)
        if (part == modifier) return true;
      return false;
    };
    i.width = has("v8") || has("x8") ? 8 : has("v4") || has("x4") ? 4 : has("v2") || has("x2") ? 2 : 1;
    i.space = has("shared") || has("shared::cta")                         ? Space::shared
              : has("param") || has("param::entry") || has("param::func") ? Space::param
              : has("local")                                              ? Space::local
                                                                          : Space::global;
    i.propagates_nan = has("NaN");
    i.saturates = has("sat");
    i.symbol = opcode;
    switch (i.op) {
      case Op::load:
        i.out = operands(arguments[0]);
        i.offset = address(arguments[1], i);
        break;
      case Op::store:
        i.offset = address(arguments[0], i);
        for (auto& value : operands(arguments[1])) i.in.push_back(value);
        break;
      case Op::ldmatrix:
        i.flavour = has("trans");
        i.out = operands(arguments[0]);
        i.offset = address(arguments[1], i);
        break;
      case Op::stmatrix:
        i.flavour = has("trans");
        i.offset = address(arguments[0], i);
        for (auto& value : operands(arguments[1])) i.in.push_back(value);
        break;
      case Op::copy_async:
        copy(i, parts, arguments);
        break;
      case Op::mma:
        product(i, arguments);
        break;
      case Op::wgmma:
        wide_product(i, parts, arguments);
        break;
      case Op::branch:
        i.symbol = arguments[0];
        break;
      case Op::branch_table:
        i.in = operands(arguments[0]);
        i.symbol = arguments[1];
        break;
      case Op::call:
        call(i, arguments);
        break;
      case Op::nothing:
        if (starts(opcode, "fence.proxy.async")) i.op = Op::fence_async;
        break;
      case Op::barrier:
        if (has("warp"))
          i.op = Op::nothing;
        else if (arguments.size() > 1)
          throw std::runtime_error("a barrier of some warps: " + statement);
        break;
      case Op::shfl:
      case Op::vote:
      case Op::shf:
        i.flavour = has("bfly") || has("all") || has("l")  ? 0
                    : has("idx") || has("any") || has("r") ? 1
                    : has("up") || has("ballot")           ? 2
                                                           : 3;
        plain(i, arguments);
        break;
      default:
        if (i.op == Op::mul && has("wide")) i.op = Op::mul_wide;
        if (i.op == Op::mul && has("hi")) i.op = Op::mul_high;
        if (i.op == Op::mad && has("wide")) i.op = Op::mad_wide;
        if (i.op == Op::mov && arguments.size() == 2 && arguments[0][0] == '{') i.op = Op::unpack;
        if (i.op == Op::mov && arguments.size() == 2 && arguments[1][0] == '{') i.op = Op::pack;
        if (i.op == Op::setp) {
          i.compare = known(kCompares, parts[1], statement);
          i.flavour = has("and") ? 1 : has("or") ? 2 : has("xor") ? 3 : 0;
        }
        i.rounding = has("rzi")   ? Rounding::to_int_zero
                     : has("rni") ? Rounding::to_int_nearest
                     : has("rmi") ? Rounding::to_int_down
                     : has("rpi") ? Rounding::to_int_up
                     : has("rz")  ? Rounding::zero
                                  : Rounding::nearest;
        plain(i, arguments);
    }
    function_->code.push_back(std::move(i));
  }

  static Strings split_opcode(const std::string& opcode) {
    Strings parts;
    std::istringstream stream(opcode);
    for (std::string part; std::getline(stream, part, '.');) parts.push_back(part);
    return parts;
  }

  // The first argument is the result; d|p are two.
  void plain(Instruction& i, const Strings& arguments) {
    for (std::size_t k = 0; k < arguments.size(); ++k) {
      if (k > 0) {
        for (auto& value : operands(arguments[k])) i.in.push_back(value);
        continue;
      }
      for (const auto& result : split(arguments[0], '|'))
        for (auto& value : operands(result)) i.out.push_back(value);
    }
  }

  void copy(Instruction& i, const Strings& parts, const Strings& arguments) {
    if (parts.back() == "commit_group") {
      i.op = Op::copy_commit;
    } else if (parts.back() == "wait_group" || parts.back() == "wait_all") {
      i.op = Op::copy_wait;
      i.in = arguments.empty() ? std::vector<Operand>{Operand{}} : operands(arguments[0]);
    } else if (parts.size() > 3 && parts[1] == "async" && parts[2] != "bulk") {
      i.offset = address(arguments[0], i);
      i.offset2 = address(arguments[1], i);
      for (std::size_t k = 2; k < arguments.size(); ++k) i.in.push_back(operand(arguments[k]));
    } else {
      throw std::runtime_error("unknown copy: " + i.text);
    }
  }

  void product(Instruction& i, const Strings& arguments) {
    i.out = operands(arguments[0]);
    for (std::size_t k = 1; k < 4; ++k) {
      const auto values = operands(arguments[k]);
      i.groups.push_back(int(values.size()));
      i.in.insert(i.in.end(), values.begin(), values.end());
    }
  }

  void wide_product(Instruction& i, const Strings& parts, const Strings& arguments) {
    if (parts[1] == "fence") {
      i.op = Op::wgmma_fence;
    } else if (parts[1] == "commit_group") {
      i.op = Op::wgmma_commit;
    } else if (parts[1] == "wait_group") {
      i.op = Op::wgmma_wait;
      i.in = operands(arguments[0]);
    } else {  // sums, A (registers or a descriptor), descriptor of B, keep sums, signs, transposed
      i.out = operands(arguments[0]);
      for (std::size_t k = 1; k < arguments.size(); ++k) {
        const auto values = operands(arguments[k]);
        i.groups.push_back(int(values.size()));
        i.in.insert(i.in.end(), values.begin(), values.end());
      }
    }
  }

  void call(Instruction& i, Strings arguments) {
    if (arguments[0][0] == '(') {
      i.result = trimmed(arguments[0].substr(1, arguments[0].size() - 2));
      arguments.erase(arguments.begin());
    }
    i.symbol = arguments[0];
    if (arguments.size() > 1) i.names = split(arguments[1].substr(1, arguments[1].size() - 2), ',');
  }

  Program& program_;
  Function* function_ = nullptr;
  int depth_ = 0;
  std::string label_, place_;
  std::map<int, std::string> files_;
  std::map<std::string, Strings> tables_;
};

}  // namespace

int bytes_of(Type type) {
  switch (type) {
    case Type::b8:
    case Type::u8:
    case Type::s8:
      return 1;
    case Type::b16:
    case Type::u16:
    case Type::s16:
    case Type::f16:
    case Type::bf16:
      return 2;
    case Type::b64:
    case Type::u64:
    case Type::s64:
    case Type::f64:
      return 8;
    default:
      return 4;
  }
}

bool is_signed(Type type) { return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64; }

bool is_float(Type type) { return type >= Type::f16; }

int Function::reg(const std::string& name) { return registers.emplace(name, int(registers.size())).first->second; }

std::unique_ptr<Program> parse(const std::string& text, const std::string& kernel) {
  auto program = std::make_unique<Program>();
  Parser(*program).run(text);
  for (auto& function : program->functions)
    if (function->is_kernel && (kernel.empty() || function->name == kernel)) program->kernel = function.get();
  if (!program->kernel) throw std::runtime_error("no kernel" + (kernel.empty() ? "" : " named " + kernel));
  return program;
}

}  // namespace ptx
