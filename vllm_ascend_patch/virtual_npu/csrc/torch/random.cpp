// SPDX-License-Identifier: Apache-2.0
//
// See random.h.
#include "random.h"

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "alias.h"
#include "torch_npu/csrc/aten/NPUGeneratorImpl.h"

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

uint64_t seed_at(uint64_t seed, uint64_t offset) {
  return mix(seed ^ mix(offset));
}

at::Generator npu_generator(const std::optional<at::Generator>& given, c10::Device device) {
  // Not ATen's look-up of default generators, which does not reach torch_npu 2.7's.
  at::Generator generator = given && given->defined() ? *given : at_npu::detail::getDefaultNPUGenerator(device.index());
  TORCH_CHECK(
      generator.device().type() == kNPU,
      "Expected a 'npu' device type for generator but found '",
      generator.device().type(),
      "'");
  return generator;
}

uint64_t next_seed(const std::optional<at::Generator>& given, c10::Device device) {
  at::Generator generator = npu_generator(given, device);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  const uint64_t offset = generator.get_offset();
  generator.set_offset(offset + kOffsetStep);
  return seed_at(generator.current_seed(), offset);
}

// torch_npu names the words by tensor or by address, depending on its version.
const int64_t* words(at::Tensor* tensor) {
  return tensor->const_data_ptr<int64_t>();
}

const int64_t* words(const int64_t* address) {
  return address;
}

uint64_t seed_of(const CapturedSeed& captured) {
  return seed_at(static_cast<uint64_t>(*captured.seed), static_cast<uint64_t>(*captured.offset) + captured.share);
}

} // namespace

at::Generator cpu_generator(const std::optional<at::Generator>& given, c10::Device device) {
  thread_local at::Generator generator = at::detail::createCPUGenerator();
  generator.set_current_seed(next_seed(given, device));
  return generator;
}

CapturedSeed captured_seed(const std::optional<at::Generator>& given, c10::Device device) {
  at::Generator generator = npu_generator(given, device);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  const auto state = at::check_generator<at_npu::NPUGeneratorImpl>(generator)->philox_npu_state(kOffsetStep);
  return {words(state.seed_.ptr), words(state.offset_.ptr), state.offset_intragraph_};
}

at::Generator seeded_cpu_generator(const CapturedSeed& seed) {
  thread_local at::Generator generator = at::detail::createCPUGenerator();
  generator.set_current_seed(seed_of(seed));
  return generator;
}

BorrowedDefaultGenerator::BorrowedDefaultGenerator(bool enable, c10::Device device) {
  if (enable) {
    borrow(next_seed(std::nullopt, device));
  }
}

BorrowedDefaultGenerator::BorrowedDefaultGenerator(const std::optional<CapturedSeed>& seed) {
  if (seed) {
    borrow(seed_of(*seed));
  }
}

void BorrowedDefaultGenerator::borrow(uint64_t seed) {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  saved_ = generator.unsafeGetGeneratorImpl()->get_state();
  generator.unsafeGetGeneratorImpl()->set_current_seed(seed);
}

BorrowedDefaultGenerator::~BorrowedDefaultGenerator() {
  if (saved_) {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.unsafeGetGeneratorImpl()->set_state(*saved_);
  }
}

} // namespace virtual_npu
