// Products of many activation rows: a panel of weight rows is unpacked once and meets all of them.
#pragma once

#include "activations.h"
#include "blocks.h"

namespace ember {

constexpr int64_t kPanel = 32;  // weight rows of a panel

// A thread's own.
template <typename Panel>
Panel& own_panel() {
    thread_local Panel panel;
    return panel;
}

// Which panel a type's weights are unpacked into; void: one of floats (float_panel.h). Types with
// panels of their own specialise this.
template <Type kType>
struct PanelOf {
    using Panel = void;
};

}  // namespace ember
