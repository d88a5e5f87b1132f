// Codes as a saved cache has them (codecs/packing.py): one stream of bits for each token, channel
// 0 lowest, so that eight codes fill whole bytes.
#pragma once

#include <cstdint>
#include <cstring>

namespace ember {

// The upper half of each `width` bits that lie in twice the room moves to the room's upper half.
template <int width>
inline uint64_t parted(uint64_t run, int room, uint64_t each) {
    const uint64_t lower = ((uint64_t(1) << width / 2) - 1) * each;
    return (run & lower) | (run >> width / 2 & lower) << room;
}

// Codes of `bits` bits, `dim` of them, a multiple of 8, to a byte each.
template <int bits>
void read_stream(const uint8_t* stream, int64_t dim, uint8_t* codes) {
    for (int64_t at = 0; at < dim; at += 8, stream += bits) {
        uint64_t run = 0;
        std::memcpy(&run, stream, bits);
        run = parted<8 * bits>(run, 32, 1);
        run = parted<4 * bits>(run, 16, 0x0000000100000001);
        run = parted<2 * bits>(run, 8, 0x0001000100010001);
        std::memcpy(codes + at, &run, sizeof run);
    }
}

// The same of a width that is known only now, 1 to 8.
inline auto stream_reader(int64_t bits) {
    constexpr decltype(&read_stream<1>) readers[] = {
        read_stream<1>, read_stream<2>, read_stream<3>, read_stream<4>,
        read_stream<5>, read_stream<6>, read_stream<7>, read_stream<8>,
    };
    return readers[bits - 1];
}

}  // namespace ember
