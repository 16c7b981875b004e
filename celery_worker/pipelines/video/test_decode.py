"""A clip is sampled by presentation time, and what cannot be sampled is refused with a sentence."""

from fractions import Fraction

import numpy as np
import pytest

from celery_worker.pipelines.video import clips, decode
from celery_worker.pipelines.video.decode import Clip, Sampling, picture
from jobs.errors import BadInput

MAX_PIXELS = 67_108_864


def shown(path, fps=5, start=0, end=None, checkpoint=lambda: None):
    """The numbers of the counting pictures that show at each tick."""
    moments = Sampling(Fraction(fps), Fraction(start), end if end is None else Fraction(end))
    with Clip(path, MAX_PIXELS, checkpoint) as clip:
        return [clips.number_of(picture(tick.frame)) for tick in clip.ticks(moments)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi", "a.ts"])
def test_every_frame_is_seen_once_at_the_clips_own_rate(tmp_path, name):
    path = clips.write(tmp_path / name, clips.counting(12), fps=10)
    assert shown(path, fps=10) == list(range(12))


@pytest.mark.parametrize("fps", [30, 24])
def test_times_rounded_to_milliseconds_do_not_repeat_a_frame(tmp_path, fps):
    path = clips.write(tmp_path / "a.mkv", clips.counting(25), fps=fps)
    assert shown(path, fps=fps) == list(range(25))


def test_a_lower_rate_takes_the_frame_that_shows_at_each_tick(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.counting(10), fps=10)
    assert shown(path, fps=4) == [0, 2, 5, 7]


def test_a_higher_rate_holds_frames(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.counting(4), fps=2)
    assert shown(path, fps=5) == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


def test_a_variable_rate_is_sampled_by_time_not_by_count(tmp_path):
    times = [0, 100, 150, 700, 1000, 1020]
    path = clips.write(tmp_path / "a.mkv", clips.counting(6), times_ms=times, fps=10)
    assert shown(path, fps=10)[:11] == [0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 4]


def test_a_stream_without_duration_or_index_is_read_to_its_end(tmp_path):
    pipe = clips.write(clips.Pipe(), clips.counting(10), fps=10, format="matroska")
    path = tmp_path / "live.mkv"
    path.write_bytes(pipe.data)
    with Clip(path, MAX_PIXELS, lambda: None) as clip:
        assert clip.declared_s is None
    assert shown(path, fps=10) == list(range(10))


def test_a_bare_stream_without_timestamps_is_counted(tmp_path):
    path = clips.write(tmp_path / "a.h264", clips.counting(10), fps=25, format="h264")
    assert len(shown(path, fps=25)) == 10


def test_a_clip_that_does_not_begin_at_zero_begins_at_its_first_frame(tmp_path):
    times = [5_000 + 100 * n for n in range(6)]
    path = clips.write(tmp_path / "a.mkv", clips.counting(6), times_ms=times)
    assert shown(path, fps=10) == list(range(6))


def test_start_and_end_cut_a_piece_out(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.counting(20), fps=10)
    assert shown(path, fps=10, start=Fraction("0.5"), end=Fraction("0.9")) == [5, 6, 7, 8]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_far_start_is_reached_by_a_jump_to_the_same_frames(tmp_path, name):
    # Given a clip of 25 s with a key frame every five frames
    path = clips.write(tmp_path / name, clips.counting(25), fps=1, stream_options={"g": "5"})
    decoded = []
    # When it is read from second 20 on
    found = shown(path, fps=1, start=20, checkpoint=lambda: decoded.append(1))
    # Then the frames are those of a reading from the beginning, without decoding that much
    assert (found, decoded) == ([20, 21, 22, 23, 24], [])


def test_a_far_start_in_a_file_without_index_is_read_from_the_beginning(tmp_path):
    live = tmp_path / "live.mkv"
    live.write_bytes(clips.write(clips.Pipe(), clips.counting(25), fps=1, format="matroska").data)
    assert shown(live, fps=1, start=20) == [20, 21, 22, 23, 24]
    packets = clips.write(tmp_path / "a.ts", clips.counting(25), fps=1, stream_options={"g": "25"})
    assert shown(packets, fps=1, start=20) == [20, 21, 22, 23, 24]
    bare = clips.write(tmp_path / "a.h264", clips.counting(30) * 10, fps=25, format="h264")
    assert shown(bare, fps=25, start=11) == list(range(5, 30))


def test_a_jump_that_lands_too_late_is_not_believed(tmp_path, monkeypatch):
    # Given a clip whose index leads five seconds too far
    path = clips.write(tmp_path / "a.mp4", clips.counting(25), fps=1, stream_options={"g": "1"})

    class Astray:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def seek(self, offset, stream, backward):
            self.container.seek(offset + int(5 / stream.time_base), stream=stream, backward=backward)

    really = decode.av.open
    monkeypatch.setattr(decode.av, "open", lambda *args, **how: Astray(really(*args, **how)))
    # Then the right frames are found all the same
    assert shown(path, fps=1, start=15) == list(range(15, 25))


@pytest.mark.parametrize(("rotation", "corner"), [(0, "tl"), (-90, "tr"), (90, "bl"), (180, "br")])
def test_rotation_metadata_turns_the_picture_upright(tmp_path, rotation, corner):
    # Given a picture with a white top left quarter, filmed with the camera turned
    filmed = np.zeros((48, 64, 3), np.uint8)
    filmed[:24, :32] = 255
    path = clips.write(tmp_path / "a.mp4", [filmed] * 3, rotation=rotation)
    # When it is read
    with Clip(path, MAX_PIXELS, lambda: None) as clip:
        upright = picture(next(clip.ticks(Sampling(Fraction(5)))).frame)
    # Then it stands as a player would show it
    assert upright.shape[:2] == ((48, 64) if rotation in (0, 180) else (64, 48))
    height, width = upright.shape[0] // 2, upright.shape[1] // 2
    quarters = {
        "tl": upright[:height, :width],
        "tr": upright[:height, width:],
        "bl": upright[height:, :width],
        "br": upright[height:, width:],
    }
    assert max(quarters, key=lambda name: quarters[name].mean()) == corner


def test_a_clip_is_bounded_by_its_frames_when_its_header_says_less(tmp_path):
    path = clips.with_declared_duration(clips.write(tmp_path / "a.mkv", clips.counting(20), fps=10), 0.1)
    assert shown(path, fps=10) == list(range(20))


def test_a_longer_sound_track_is_no_lie_about_the_duration(tmp_path):
    path = clips.write(tmp_path / "a.mkv", clips.counting(10), fps=10, sound_s=12)
    assert shown(path, fps=10) == list(range(10))


def test_a_frame_that_cannot_be_decoded_is_left_out(tmp_path):
    # Given a clip of key frames only, one of them damaged
    path = clips.write(tmp_path / "a.avi", clips.counting(10, (320, 240)), codec="mjpeg", pixels="yuvj420p")
    data = path.read_bytes()
    pictures = [n for n in range(len(data)) if data.startswith(b"\xff\xd8\xff", n)]
    path.write_bytes(data[: pictures[4]] + bytes(800) + data[pictures[4] + 800 :])
    # Then the frame before it is held
    assert shown(path, fps=10) == [0, 1, 2, 3, 3, 5, 6, 7, 8, 9]


def refusal(path, **how):
    with pytest.raises(BadInput) as refused:
        shown(path, **how)
    return str(refused.value)


def test_a_text_file_named_mp4_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("Dear Sir or Madam,\n" * 1_000)
    assert refusal(path) == "The file is not a video that can be read, and no picture."


def test_a_playlist_cannot_reach_other_files(tmp_path):
    clips.write(tmp_path / "secret.mp4", clips.counting(3))
    clips.write(tmp_path / "secret.ts", clips.counting(3))
    lists = {
        "a.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "b.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
        "c.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert refusal(tmp_path / name) == "The file is not a video that can be read, and no picture."


def test_an_mp4_cut_off_before_its_index_says_so(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.counting(20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "no usable index" in refusal(path)


def test_an_mp4_cut_off_behind_its_index_says_where(tmp_path):
    noise = np.random.default_rng(1).integers(0, 255, (20, 96, 128, 3), np.uint8)
    path = clips.write(tmp_path / "a.mp4", noise, options={"movflags": "+faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    assert "cut off or damaged after 1." in refusal(path)


def test_sound_alone_is_no_video(tmp_path):
    path = clips.write(tmp_path / "a.mkv", clips.counting(5), sound_s=1)
    sound = clips.only_sound(path, tmp_path / "b.m4a")
    assert refusal(sound) == "There is no video in the file, only sound."


def test_a_video_without_one_decodable_frame_is_refused(tmp_path):
    path = clips.without_content(clips.write(tmp_path / "a.mp4", clips.counting(10)))
    assert refusal(path).startswith("Not one frame of the video can be decoded")


def test_frames_of_16000_by_16000_pixels_are_refused_before_one_is_decoded(tmp_path, monkeypatch):
    path = clips.huge_frames(tmp_path / "a.h264")
    monkeypatch.setattr(Clip, "_packets", lambda _: pytest.fail("the file was read on"))
    assert refusal(path) == "A frame has 16000 x 16000 pixels; at most 67,108,864 pixels are allowed."


def test_a_header_that_promises_much_more_than_there_is_is_refused(tmp_path):
    path = clips.with_declared_duration(clips.write(tmp_path / "a.mkv", clips.counting(20), fps=10), 36_000)
    assert refusal(path) == "The file says that it lasts 36,000.0 s, but it ends after 2.0 s."


def test_timestamps_that_jump_by_hours_are_damage_not_a_still_picture(tmp_path):
    path = clips.write(tmp_path / "a.mkv", clips.counting(3), times_ms=[0, 100, 100_000_000])
    assert "jump from 0.1 s to 100,000.0 s" in refusal(path)


def test_a_start_beyond_the_end_is_refused(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.counting(10), fps=10)
    assert refusal(path, start=3) == "The video ends after 1.0 s, before start (3.0 s)."
    assert refusal(path, start=300) == "The video ends after 1.0 s, before start (300.0 s)."


def test_an_end_before_the_start_is_refused():
    with pytest.raises(BadInput, match="Nothing lies between start"):
        decode.sampling({"fps": 5, "every": 1, "start": 3, "end": 3})
