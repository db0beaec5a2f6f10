// SPDX-License-Identifier: Apache-2.0
//
// See random.h.
#include "random.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <mutex>

#include "alias.h"

namespace virtual_npu {
namespace {

// Philox counts in steps of four, and so do the offsets of a device's generator.
constexpr uint64_t kOffsetStep = 4;

// splitmix64: neighbouring seeds and offsets give unrelated streams.
uint64_t mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15u;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

uint64_t next_seed(const std::optional<at::Generator>& given, c10::Device device) {
  at::Generator generator = given && given->defined() ? *given : at::globalContext().defaultGenerator(device);
  TORCH_CHECK(
      generator.device().type() == kNPU,
      "Expected a 'npu' device type for generator but found '",
      generator.device().type(),
      "'");
  const std::lock_guard<std::mutex> lock(generator.mutex());
  const uint64_t offset = generator.get_offset();
  generator.set_offset(offset + kOffsetStep);
  return mix(generator.current_seed() ^ mix(offset));
}

} // namespace

at::Generator cpu_generator(const std::optional<at::Generator>& given, c10::Device device) {
  thread_local at::Generator generator = at::detail::createCPUGenerator();
  generator.set_current_seed(next_seed(given, device));
  return generator;
}

BorrowedDefaultGenerator::BorrowedDefaultGenerator(bool enable, c10::Device device) {
  if (enable) {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const uint64_t seed = next_seed(std::nullopt, device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    saved_ = generator.unsafeGetGeneratorImpl()->get_state();
    generator.unsafeGetGeneratorImpl()->set_current_seed(seed);
  }
}

BorrowedDefaultGenerator::~BorrowedDefaultGenerator() {
  if (saved_) {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.unsafeGetGeneratorImpl()->set_state(*saved_);
  }
}

} // namespace virtual_npu
