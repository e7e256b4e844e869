#include "base/error.h"
#include "check.h"
#include "ops/build_info.h"

// Arguments: names of cases to leave out.
int main(int count, char** arguments) {
    std::string variants;
    for (const std::string& name : edgeprune::present_variants()) variants += " " + name;
    std::printf("variants:%s\n", variants.c_str());
    for (const test::Case& each : test::cases()) {
        bool left_out = false;
        for (int i = 1; i < count; ++i) left_out = left_out || std::string(arguments[i]) == each.name;
        if (left_out) {
            std::printf("%s: left out\n", each.name);
            continue;
        }
        const long before = test::checks();
        try {
            each.run();
        } catch (const std::exception& error) {
            test::check(false, error.what(), each.name, 0);
        }
        if (test::checks() == before) test::check(false, "checked nothing", each.name, 0);
        std::printf("%s: %ld checks\n", each.name, test::checks() - before);
    }
    std::printf("%ld checks, %ld failures\n", test::checks(), test::failures());
    return test::failures() == 0 && test::checks() > 0 ? 0 : 1;
}
