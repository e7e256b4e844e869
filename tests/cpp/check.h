// The smallest test harness that will do: TEST registers a function, CHECK counts and goes on, main() reports.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace test {

struct Case {
    const char* name;
    void (*run)();
};
inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}
inline long& checks() {
    static long done = 0;
    return done;
}
inline long& failures() {
    static long seen = 0;
    return seen;
}
struct Register {
    Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void check(bool holds, const char* what, const char* file, int line) {
    ++checks();
    if (holds) return;
    if (++failures() <= 20) std::printf("%s:%d: %s\n", file, line, what);
}

// Fails on NaN: the comparison is written so that it must be true to pass.
inline bool close(double got, double expected, double tolerance) { return std::fabs(got - expected) <= tolerance; }

// Small, seeded, the same everywhere (std:: distributions are not).
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
    uint64_t next() {
        state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
        return state_ >> 33;
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
    float real() { return static_cast<float>(static_cast<double>(next()) / (1ull << 30) - 1.0); }

  private:
    uint64_t state_;
};

}  // namespace test

#define TEST(name)                                         \
    static void name();                                    \
    static const test::Register name##_case(#name, &name); \
    static void name()
#define CHECK(condition) test::check(condition, #condition, __FILE__, __LINE__)
